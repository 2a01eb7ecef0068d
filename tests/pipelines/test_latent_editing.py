"""benchmarks/latent_editing.py on a tiny run: its numbers, its texts, and mistakes."""

from __future__ import annotations

import json

import pytest

from benchmarks import latent_editing


def test_variations_interpolations_and_edits_are_counted_and_shown(chain, programs, tmp_path, capsys):
    corpus = programs.corpus
    files = ["--references", str(corpus / "test.jsonl"), "--train", str(corpus / "train.jsonl")]
    flags = ["--n", "3", "--shown", "2", "--output_dir", str(tmp_path / "out"), "--sampling_timesteps", "5"]
    assert latent_editing.main([str(chain / "diff"), *files, *flags, "--edits", "She:He"]) == 0
    found = json.loads((tmp_path / "out" / "editing.json").read_text())
    assert set(found["variations"]) == {"0.3", "0.5", "0.7", "0.9"}
    assert all(0 <= row["changed"] <= 1 for row in found["variations"].values())
    assert found["interpolation"]["to_first"] == [None] * 5, "no encoder was named"
    edit = found["edit She:He"]
    assert edit["texts"] == 3 and all(0 <= edit[weight]["has_after"] <= 1 for weight in ("0.0", "1.0", "2.0"))
    page = (tmp_path / "out" / "editing.md").read_text()
    assert page.count("- **") == 2 + 4 + 2 and "Edit: She -> He" in page
    capsys.readouterr()
    for wrong in (["--edits", "She"], ["--edits", "She:zebra"], ["--n", "100000"]):
        with pytest.raises(SystemExit) as ended:
            latent_editing.main([str(chain / "diff"), *files, *flags, *wrong])
        assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_words_are_whole_and_their_case_does_not_count():
    assert latent_editing.has("A Man walks.", "man") and not latent_editing.has("A woman walks.", "man")
    assert latent_editing.other_words("A Man walks.", "man") == {"a", "walks"}

"""benchmarks/class_editing.py on a tiny run by class: its numbers, its texts, and mistakes."""

from __future__ import annotations

import json
import shutil

import pytest

from benchmarks import class_editing


def test_texts_are_moved_to_another_class_and_judged(chain, programs, tmp_path, capsys):
    run = tmp_path / "run"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", run, "--class_conditional --self_condition") == 0
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, source in (("train", "train"), ("test", "test"), ("judge", "valid")):
        shutil.copy(programs.corpus / f"{source}.jsonl", corpus / f"{name}.jsonl")
    names = json.loads((run / "args.json").read_text())["class_names"]
    flags = ["--corpus", str(corpus), "--output_dir", str(tmp_path / "out"), "--sampling_timesteps", "5", "--n", "4"]
    move = f"{names[0]}:{names[1]}"
    assert class_editing.main([str(run), *flags, "--shown", "2", "--move", move]) == 0
    found = json.loads((tmp_path / "out/class_editing.json").read_text())
    rows = found[f"{names[0]} to {names[1]}"]
    assert 0 <= found["classifier_accuracy"] <= 1 and rows.pop("texts") == 4
    assert rows.pop("as they were")["words_kept"] == 1
    assert set(rows) == {*(f"arithmetic 0.3, weight {w}" for w in (0, 1, 2)), "class 0.5", "class 0.7"}
    assert all(0 <= row["judged_of_the_class"] <= 1 and row["similarity"] is None for row in rows.values())
    page = (tmp_path / "out/class_editing.md").read_text()
    assert page.count("- **") == 2 and page.count("  - class 0.7: ") == 2
    capsys.readouterr()
    for wrong in (["--move", names[0]], ["--move", f"{names[0]}:{names[0]}"], ["--move", move, "--corpus", str(run)]):
        with pytest.raises(SystemExit) as ended:
            class_editing.main([str(run), *flags, *wrong])
        assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation import report
from evaluation.plots import plot, plot_run, read_curves
from pipelines.evaluators.common import to_lines
from utils.errors import UserError

CASES = Path(__file__).resolve().parents[1] / "cases"

METRICS = {
    "model/perplexity": 12.345678,
    "model/empty": 2,
    "lost": math.nan,
    "protocol": {
        "n": 9,
        "mauve_few_samples": True,
        "mauve": {"n": 9},
        "note": "not comparable",
        "missing_packages": ["spacy"],
    },
}


def test_a_report_round_trips_through_its_file(tmp_path):
    report.write(tmp_path / "eval", "val", METRICS | {"numpy": np.float32(0.5)}, ["one\ntwo", "", "\x1b[31mred"])
    data = json.loads((tmp_path / "eval/val.json").read_text())
    assert data["lost"] is None and data["numpy"] == 0.5 and data["protocol"]["n"] == 9
    assert json.loads((tmp_path / "eval/val-samples.json").read_text()) == ["one\ntwo", "", "\x1b[31mred"]
    assert (tmp_path / "eval/val-samples.txt").read_text() == "one two\n\n[31mred\n"
    assert len(list((tmp_path / "eval").iterdir())) == 4


def test_records_are_written_by_their_text(tmp_path):
    report.write(tmp_path, "pairs", {}, [{"source": "a", "reference": "b", "pred": "c"}])
    assert (tmp_path / "pairs-samples.txt").read_text() == "c\n"


def test_the_table_is_aligned_and_ends_with_notes():
    text = report.table(METRICS, "validation")
    lines = text.splitlines()
    assert lines[0] == "validation"
    assert lines[1] == "  model/perplexity  12.35"
    assert lines[2] == "  model/empty       2"
    assert "note: not comparable" in text and "9 texts per side" in text and "spacy" in text


def test_table_of_several_seeds():
    runs = {"a": {"mean": 1.0, "std": 0.25, "values": [0.75, 1.25]}, "protocol": {"runs": [METRICS["protocol"]] * 2}}
    text = report.table(runs)
    assert "a  1 +- 0.25 (2 seeds)" in text
    assert text.count("not comparable") == 1


def test_control_codes_in_samples_do_not_reach_the_terminal():
    assert report.printable("a\x1b]0;evil\x07b\u202ec\x00\r") == "a]0;evilbc"
    assert report.format_samples(["", "x\ny"]) == "   1  (empty)\n   2  x y"
    assert "\x1b" not in report.table({"\x1b[2Jkey": "\x1b[2Jvalue"})


def test_curves_are_read_from_the_log_and_plotted(tmp_path):
    rows = [{"step": s, "loss": 1 / s, "val_loss": 2 / s, "model/beam/x": s, "text": "no"} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4, "lo')
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves["loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))] and "text" not in curves
    assert sorted(path.name for path in plot_run(tmp_path)) == ["loss.png", "model_beam_x.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "plots").iterdir())


def test_damaged_and_missing_logs_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\nnonsense\n{"step": 2, "loss": 1}\n')
    with pytest.raises(UserError, match="line 2"):
        read_curves(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="no metrics.jsonl"):
        plot_run(tmp_path / "elsewhere")
    assert plot({"alone": [(1, 1.0)]}, tmp_path / "p") == []


def test_blanks_and_joiners_of_texts_stay_in_every_output(tmp_path):
    texts = (CASES / "spaces_and_joiners.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert any("\u00a0" in text for text in texts) and any("\u200c" in text for text in texts)
    report.write(tmp_path, "eval", {}, texts)
    assert (tmp_path / "eval-samples.txt").read_text(encoding="utf-8").split("\n")[:-1] == texts
    assert to_lines(texts).split("\n")[:-1] == texts
    assert report.format_samples(texts[:1]) == f"   1  {texts[0]}"
    assert to_lines(["a\u2028b\r\nc\x00\x9b31m \u202egpj"]) == "a b c31m gpj\n"


def test_more_samples_are_advised_only_where_there_are_references_for_them():
    few = {"mauve": {"n": 40}, "mauve_few_samples": True}
    for available, advice in ((None, "sample 1,000"), (5000, "sample 1,000"), (40, "no more than 40 references")):
        known = {} if available is None else {"available": available}
        (note,) = report.notes({"protocol": {**few, **known}})
        assert advice in note and note.startswith("MAUVE of 40 texts")
        (note,) = report.notes({"protocol": {"classes": {**few, **known}, "available": 9}})
        assert advice in note or available is None

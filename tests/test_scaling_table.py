"""The tables of docs/scaling.md are those of the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling_table
from utils.errors import UserError


def row(part: str, case: str, rate: float, texts: int) -> dict:
    speed = {"median": rate, "lowest": rate, "highest": rate, "rounds": [rate, rate]}
    return {
        "part": part, "case": case, "steps_per_round": 3, "steps_per_second": speed, "texts_per_second": rate * texts,
    }  # fmt: skip


def write_record(folder: Path, **changes: object) -> None:
    rows = [row("denoiser", "all on", 50.0, 128), row("denoiser", "everything off", 10.0, 128)]
    rows += [row("autoencoder", "everything off", 10.0, 256), row("autoencoder", "without cache", 20.0, 256)]
    rows += [
        row("sampling", "decode, greedy, all on", 2.0, 250),
        row("sampling", "decode, greedy, without bf16", 1.0, 250),
    ]
    record = {
        "size": "paper", "device": "NVIDIA H100", "threads": 8, "rounds": 2, "memory": "of a case alone, at its peak",
        "slower": [], "rows": rows, "layout": {"batch": 128, "ae_batch": 256}, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "throughput.json").write_text(json.dumps(record))


def test_the_page_has_the_tables_of_the_records():
    written = scaling_table.tables(list(scaling_table.records()))
    page = scaling_table.PAGE.read_text(encoding="utf-8")
    assert page == scaling_table.page_with(page, written), "run python benchmarks/scaling_table.py --write"


def test_times_are_the_steps_over_the_rate_and_cases_that_lack_are_said(tmp_path):
    write_record(tmp_path / "records" / "gpu" / "throughput")
    batches = {"batch": 128, "ae_batch": 256}  # twice those of the recipe: half of the steps hold its texts
    cpu = "of the process at the case's peak"
    write_record(tmp_path / "records" / "cpu", size="small", memory=cpu, layout=batches)
    old = tmp_path / "records" / "old"
    write_record(old)
    (old / "throughput.json").write_text(json.dumps({"rows": [row("denoiser", "all on", 50.0, 128)]}))
    found = list(scaling_table.records(tmp_path / "records"))
    assert [path.parent.name for path, _ in found] == ["cpu", "throughput"], "the small size first; no old record"
    small, autoencoder, paper, _, *published = scaling_table.training_rows(found)
    assert small[0] == "small" and small[1].startswith("[NVIDIA H100, 8 threads](")
    assert paper[0] == "paper" and paper[1].startswith("[NVIDIA H100](")
    assert paper[2:] == ["denoiser", "50", "6,400", "6 of 128 texts", "250,000 in 83.3 min", "6.94 h"]
    assert small[2:] == ["denoiser", "50", "6,400", "6 of 128 texts", "250,000 in 41.7 min", "3.47 h"]
    assert autoencoder[2:5] == ["autoencoder", "20", "5,120"], "that of the recipe; none with cached states"
    assert [line[-1] for line in published] == ["250,000 in 35 h", "50,000 in 12.6 h"]
    decoding = next(iter(scaling_table.sampling_rows(found)))
    assert decoding[2:] == ["decode, greedy", "500", "2 s", "not measured"]


def test_a_page_without_the_two_lines_is_one_error():
    with pytest.raises(UserError, match="lacks the lines"):
        scaling_table.page_with("# Speed", "tables")


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.14 s"), (600, "10 min"), (126_000, "35 h"), (10**7, "116 days")]
)
def test_a_time_is_written_in_the_unit_that_suits_it(seconds, text):
    assert scaling_table.duration(seconds) == text

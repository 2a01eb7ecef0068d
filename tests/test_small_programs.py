"""Benchmarks and other small programs complain in one line, as the main ones do, and answer --help."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path

import pytest

from utils.errors import exit_on_user_error

PARITY = Path(__file__).resolve().parents[1] / "scripts" / "check_parity.py"
PROGRAMS = (
    *(f"benchmarks.{name}" for name in (
        "annealing", "conditions_classes", "conditions_seq2seq", "corpus_sizes", "decoding", "drafting",
        "embedding_simple", "loss_tables", "pairs", "quality_speed", "rocstories", "tales_quality", "throughput",
    )),
    *(f"dataset_utils.{name}" for name in ("__main__", "fetch", "survey", "tales")),
    "scripts/check_parity",
)  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mistake_is_one_line_and_help_is_help(name, capsys):
    parity = "parity" in name
    main = runpy.run_path(str(PARITY), run_name=name)["main"] if parity else importlib.import_module(name).main
    main = main if hasattr(main, "__wrapped__") else exit_on_user_error(main)  # as where it is run
    with pytest.raises(SystemExit) as left:
        main(["--no_such_flag", "3"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "--help" in line
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0 and "usage:" in capsys.readouterr().out

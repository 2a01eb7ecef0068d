"""Benchmarks and other small programs print errors of use in one line, like the main programs, and have --help."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path

import pytest

from utils.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (
    *(f"benchmarks.{name}" for name in (
        "annealing", "attention_kernels", "class_guidance", "source_conditioning", "corpus_sizes", "decoding",
        "speculative_decoding", "fuzz", "gpu_session.__main__", "gpu_session_record", "loss_tables", "pairs",
        "quality_speed", "real_text", "rocstories", "story_quality", "throughput",
    )),
    *(f"dataset_utils.{name}" for name in ("__main__", "fetch", "inspect", "tales")),
    "evaluation.score.__main__",
    "pipelines.recipe.__main__",
    "latent_models.pretrained.__main__",
    "scripts/check_parity.py",
    "benchmarks/records/2026-11-21_embedding_simple_cpu/embedding_simple.py",
)  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_unknown_flag_is_one_line_and_help_prints_usage(name, capsys):
    is_path = name.endswith(".py")
    main = runpy.run_path(str(ROOT / name), run_name=name)["main"] if is_path else importlib.import_module(name).main
    main = main if hasattr(main, "__wrapped__") else exit_on_user_error(main)  # as when it runs as a program
    with pytest.raises(SystemExit) as exit_info:
        main(["--no_such_flag", "3"])
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "--help" in line
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0 and "usage:" in capsys.readouterr().out

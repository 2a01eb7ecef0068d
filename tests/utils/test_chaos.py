"""Trainings that are killed again and again end as if they had not been (benchmarks/chaos.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def attack(folder: Path, *flags: str) -> dict:
    """Run the driver; returns chaos.json."""
    command = [sys.executable, "benchmarks/chaos.py", "--output_dir", str(folder), *flags]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    log = (folder / "chaos.log").read_text() if (folder / "chaos.log").exists() else ""
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{log}"
    result = json.loads((folder / "chaos.json").read_text())
    assert not result["problems"]
    return result


def test_a_few_kills_change_nothing(tmp_path):
    result = attack(tmp_path / "chaos", "--kills", "6", "--trainings", "language_model")
    assert result["kills"] >= 6 and result["runs_compared"]["language_model"]
    assert result["kills_by_kind"]["language_model, call of a save"] and result["runs_compared"]["latent_cache"]
    assert result["calls_of_a_save"]["language_model"]["save"] > 20, "the calls of a save are seen"


@pytest.mark.slow
def test_many_kills_change_nothing(tmp_path):
    result = attack(tmp_path / "chaos", "--kills", "80", "--seed", "1")
    assert result["kills"] >= 80 and len(result["runs_compared"]) == 6
    assert not list((tmp_path / "chaos").rglob("*.partial"))

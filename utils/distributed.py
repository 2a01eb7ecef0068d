"""Devices, ranks and gradient averaging, on accelerate; one process (the default DistContext) needs no process group.

`torchrun`, `accelerate launch` and `mpirun` (utils.mpi) start the programs. accelerate picks the device, joins the
process group, wraps networks in DistributedDataParallel and gathers tensors and objects. This module and others add
what accelerate lacks:

    cpu_group        a gloo group beside NCCL: ranks agree on when to stop without waiting for a GPU
    barrier          waits for hours for ranks that give signs of life (utils.heartbeat), and minutes for one that hangs
    autocast         Accelerator.autocast has one precision per process and refuses fp16 on a CPU, and its prepare()
                     casts the network's outputs to float32, which changes the loss
    utils.sharding   accelerate shards on GPUs alone, and only a network together with its optimizer
    resume           accelerate's checkpoints keep neither the data position nor random streams (utils.state does)
    two CPU ranks    `accelerate launch --cpu --num_processes 2` starts one process: use torchrun
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from utils import heartbeat
from utils.errors import UserError
from utils.mpi import adopt_mpi_ranks
from utils.preemption import check_interrupt

TIMEOUT = timedelta(minutes=10)  # of one exchange between ranks that have all arrived: a hang is noticed
PATIENCE = timedelta(hours=12)  # of DistContext.barrier, for ranks that work and say so: they evaluate, encode


@dataclass(frozen=True)
class DistContext:
    """Rank, number of processes and device of this process. The default is a single process on the CPU."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cpu_group: Any = None  # group of all processes that communicates without GPUs; None: the default group is one
    patient_group: Any = None  # the same with PATIENCE; None: the default group

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks. Every rank must call it."""
        if self.world_size == 1:
            return x
        from accelerate.utils import reduce

        return reduce(x.detach(), "sum")

    def gather(self, x: Tensor) -> Tensor:
        """Tensors of one shape from all ranks, in order of rank: (world_size, *x.shape). Every rank must call it."""
        if self.world_size == 1:
            return x[None]
        from accelerate.utils import gather

        return gather(x[None].contiguous())

    def mean(self, x: Tensor) -> Tensor:
        """The mean over ranks. Every rank must call it."""
        return self.sum(x) / self.world_size

    def max(self, number: int) -> int:
        """The maximum over ranks. Every rank must call it. Only the hosts wait for each other, not the GPUs."""
        return self.max_of([number])[0]

    def max_of(self, numbers: list[int]) -> list[int]:
        """The maximum of each number over ranks, as `max`."""
        if self.world_size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.cpu_group)
        return found.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Every rank must call it."""
        return bool(self.max(int(flag)))

    def barrier(self) -> None:
        """Wait for all ranks, hours if need be, as long as they give signs of life. Every rank must call it.

        It polls, so that a signal is seen meanwhile. A rank that has ended raises an error here at once, one that hangs
        after minutes (UserError, utils.heartbeat): its loops call heartbeat.beat(), other work is inside beating().
        """
        if self.world_size == 1:
            return
        work = torch.distributed.barrier(group=self.patient_group, async_op=True)
        wait, pause = heartbeat.wait(), 1e-4
        while not work.is_completed():
            check_interrupt()
            if wait is not None:
                wait.look()
            time.sleep(pause)
            pause = min(1.5 * pause, 0.05)
        try:
            work.wait()
        except RuntimeError:
            check_interrupt()  # another rank has left because of the same signal
            raise


# ----------------------------------------------------------------------------------------------- devices, process group


def pick_device(flag: str = "auto") -> torch.device:
    """The device of --device; auto takes cuda, else mps, else the CPU. Under a launcher: the GPU of this local rank.

    Raises UserError if torch finds no such device, or this machine has more processes than GPUs: accelerate would
    let two processes share one GPU.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(k for k in ("cuda", "mps", "cpu") if present[k]) if flag == "auto" else flag
    if not present.get(kind, False):
        have = ", ".join(k for k, there in present.items() if there)
        raise UserError(
            f"--device {kind}: torch finds none here (it finds: {have}): leave the flag out, or install a build for it"
        )
    return torch.device("cuda", _local_gpu()) if kind == "cuda" else torch.device(kind)


def _local_gpu() -> int:
    local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"process {local_rank + 1} of this machine finds {gpus} GPU(s): start one process for each, "
            "or add --device cpu"
        )
    return local_rank


def init_distributed(device_flag: str = "auto") -> DistContext:
    """Join the process group if a launcher started several processes (WORLD_SIZE is set, or the ranks of an MPI).

    Raises UserError as pick_device does, and for several processes on a Mac.
    """
    adopt_mpi_ranks()
    device = pick_device(device_flag)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "mps" and world_size > 1:
        raise UserError(f"{world_size} processes cannot share a GPU of Apple: start one, or add --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        _contexts.clear()
        heartbeat.leave()
        return DistContext(device=device)
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import check_cuda_p2p_ib_support

    if device.type == "cuda" and not check_cuda_p2p_ib_support():  # as `accelerate launch` does; torchrun does not
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")
    AcceleratorState._reset_state(True)  # an earlier run of this process may have used the CPU
    state = PartialState(cpu=device.type == "cpu", timeout=TIMEOUT)
    cpu_group = None if torch.distributed.get_backend() == "gloo" else new_cpu_group(TIMEOUT)
    context = DistContext(state.process_index, state.num_processes, device, cpu_group, new_cpu_group(PATIENCE))
    _contexts[:] = [context]
    heartbeat.join(torch.distributed.distributed_c10d._get_default_store(), context.rank, context.world_size)
    return context


_contexts: list[DistContext] = []  # that of this process, if it is one of several


def current() -> DistContext:
    """The context of this process, where none is at hand; that of one process before init_distributed."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return _contexts[0] if _contexts and joined else DistContext()


def new_cpu_group(timeout: timedelta) -> Any:
    """A gloo group of all processes."""
    return torch.distributed.new_group(backend="gloo", timeout=timeout)


def cleanup() -> None:
    """Leave the process group, so that the launcher reports no error."""
    heartbeat.leave()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wrap(module: nn.Module, dist: DistContext) -> nn.Module:
    """The module in DistributedDataParallel, which averages gradients; with one rank, the module itself."""
    if dist.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    dist.barrier()  # rank 0 may have measured a large corpus, and a rank encoded its last part
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # Precision and compilation are set elsewhere: prepare_model would cast outputs to float32, and compile what is
    # compiled already. Buffers are constants here.
    accelerator = Accelerator(
        cpu=dist.device.type == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    return accelerator.prepare_model(module, device_placement=False)


def gather_objects(dist: DistContext, items: list[Any]) -> list[Any]:
    """The items of all ranks in order of rank, on every rank. They are pickled, between our own processes only."""
    if dist.world_size == 1:
        return list(items)
    dist.barrier()  # others may work for long before they get here
    from accelerate.utils import gather_object

    return gather_object(items)


def broadcast_object(dist: DistContext, item: Any) -> Any:
    """Rank 0's item on every rank; pickled, between our own processes only."""
    if dist.world_size == 1:
        return item
    dist.barrier()  # rank 0 may work for long before it gets here
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([item])[0]


# ------------------------------------------------------------------------------------------------------------ precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, mixed_precision: str | None) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of contexts for forward passes: `with autocast():`. "no" gives empty ones, and so does None."""
    if mixed_precision in (None, "no"):
        return nullcontext
    dtype = _DTYPES[str(mixed_precision)]
    return lambda: torch.autocast(device.type, dtype=dtype)


@contextmanager
def keep_casts(
    network: nn.Module, autocast: Callable[[], AbstractContextManager[Any]], device: torch.device
) -> Iterator[None]:
    """Context manager around many calls of a network without gradients, each of them under autocast().

    An autocast inside another one keeps the weights that it casts until the outer one ends; that of each call by itself
    would cast them anew. torch keeps only casts of weights with requires_grad, so frozen ones have it meanwhile.
    Between the calls autocast is off: only the network computes in half precision.
    """
    with autocast():
        if not (torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)):
            yield
            return
        frozen = [p for p in network.parameters() if not p.requires_grad and p.is_leaf and not p.is_inference()]
        frozen = [p for p in frozen if p.is_floating_point()]
        try:
            for p in frozen:
                p.requires_grad_(True)
            with torch.autocast(device.type, enabled=False):
                yield
        finally:
            for p in frozen:
                p.requires_grad_(False)


def has_bf16(device: torch.device | None = None) -> bool:
    """Whether the device has instructions for bfloat16; where it is emulated, autocast costs time.

    The environment variable DISABLE_BF16=1 makes it return False everywhere, to reproduce the results of an older
    processor on a new one (the iteration of Muon) and to test both on one machine.
    """
    if os.environ.get("DISABLE_BF16") == "1":
        return False
    kind = (device or pick_device()).type
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

"""Devices, precision and ranks: thin over torch.distributed, as torchrun and `accelerate launch` start it.

One process needs none of it: Ranks() answers for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

PATIENCE = timedelta(hours=12)  # of ranks that wait while the first one samples and evaluates


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, and where it computes."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    hosts: Any = None  # group of the same processes that speaks without their devices; None: the default one does

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks. Every rank must call it."""
        if self.world == 1:
            return x
        total = x.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def gather(self, x: Tensor) -> Tensor:
        """The x of all ranks, which have one shape, in order of rank: (world, *x.shape). Every rank must call it."""
        if self.world == 1:
            return x[None]
        parts = [torch.empty_like(x) for _ in range(self.world)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    def mean(self, x: Tensor) -> Tensor:
        return self.sum(x) / self.world

    def largest(self, number: int) -> int:
        """The largest number of all ranks. Every rank must call it; hosts wait for each other, not for a device."""
        if self.world == 1:
            return number
        found = torch.tensor(number)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.hosts)
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank. Every rank must call it."""
        return bool(self.largest(int(flag)))

    def barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()


def pick_device(flag: str = "auto") -> torch.device:
    """The device of --device; auto takes cuda, else mps, else the CPU. Under torchrun, this rank's own GPU."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(k for k in ("cuda", "mps", "cpu") if present[k]) if flag == "auto" else flag
    if not present.get(kind, False):
        have = ", ".join(k for k, there in present.items() if there)
        raise UserError(
            f"--device {kind}: torch finds none here (it finds: {have}): leave the flag out, or install a build for it"
        )
    return torch.device("cuda", _own_gpu()) if kind == "cuda" else torch.device(kind)


def _own_gpu() -> int:
    own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if own >= there:
        raise UserError(
            f"process {own + 1} of this machine finds {there} GPU(s): start one process for each, or add --device cpu"
        )
    return own


def init(device_flag: str = "auto") -> Ranks:
    """Join the other processes if a launcher started several (WORLD_SIZE is set), and say who we are."""
    device = pick_device(device_flag)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        return Ranks(device=device)
    if device.type == "mps":
        raise UserError(f"{world} processes cannot share a GPU of Apple: start one, or add --device cpu")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    hosts = None if torch.distributed.get_backend() == "gloo" else new_hosts()
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, hosts)


def new_hosts() -> Any:
    """A group of all processes that speaks without their devices."""
    return torch.distributed.new_group(backend="gloo", timeout=PATIENCE)  # by itself it would wait half an hour


def finish() -> None:
    """Leave the group, so that the launcher sees a clean end."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wrap(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module whose forward averages gradients over ranks; with one rank, the module itself."""
    if ranks.world == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, mixed_precision: str) -> Callable[[], AbstractContextManager[Any]]:
    """A factory of contexts for forward passes: `with autocast():`. "no" gives empty ones."""
    if mixed_precision == "no":
        return nullcontext
    dtype = _DTYPES[mixed_precision]
    return lambda: torch.autocast(device.type, dtype=dtype)


def gather_objects(ranks: Ranks, items: list[Any]) -> list[Any]:
    """The items of all ranks in order of rank, on every rank. They travel pickled, between our own processes only."""
    if ranks.world == 1:
        return list(items)
    parts: list[Any] = [None] * ranks.world
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def broadcast_object(ranks: Ranks, item: Any) -> Any:
    """The main process' item on every process; pickled, between our own processes only."""
    if ranks.world == 1:
        return item
    held = [item]
    torch.distributed.broadcast_object_list(held, src=0, device=ranks.device)
    return held[0]


def has_bf16(device: torch.device | None = None) -> bool:
    """Whether the device has instructions for bfloat16; where it is emulated, autocast costs time.

    The environment variable DISABLE_BF16=1 makes the answer False everywhere, to compute on a new processor what an
    older one computes (the iteration of Muon) and to test both on one machine.
    """
    if os.environ.get("DISABLE_BF16") == "1":
        return False
    kind = (device or pick_device()).type
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if kind != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

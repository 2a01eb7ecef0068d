"""FSDP: weights, gradients and optimizer state sharded over ranks, for models too large to replicate.

Zhao et al. 2023, arXiv:2304.11277, by torch's fully_shard. A sharded tensor is a DTensor; `full_tensor` and
`shard_like` convert it to a plain tensor and back, so that checkpoints do not depend on the number of ranks.

Ours and not accelerate's: that shards on GPUs alone (these tests run on two CPU processes), only a network together
with its optimizer, and its fsdp2_prepare_model casts parameters to float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.distributed import DistContext


def shard(module: nn.Module, dist: DistContext, parts: Iterable[nn.Module]) -> nn.Module:
    """The module itself, its parameters sharded over ranks; gradients are averaged as by DistributedDataParallel.

    parts: submodules that are gathered one by one for their own forward, such as the layers of a transformer; each is
    called once in a forward pass. All other parameters are gathered for the whole pass. Afterwards every rank must make
    the same calls in the same order, and call methods other than forward within `unsharded`. Call this before making
    the optimizer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(dist.device.type, (dist.world_size,))
    for part in (*parts, module):
        # also the outermost module: after a forward without backward it would stay gathered, and keep old weights
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    # now, not at the first forward of the module: a part that is called earlier would be taken for the root
    fully_shard.state(module)._lazy_init()  # type: ignore[attr-defined]
    return module


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The members of every ModuleList that have parameters: the layers of a transformer."""
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList))
    return [layer for part in lists for layer in part if any(True for _ in layer.parameters())]


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Context manager: inside it any method of a sharded module can be called; each layer is gathered when it runs."""
    if not is_sharded(module):
        yield
        return
    module.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        module.reshard()  # type: ignore[operator]


def is_sharded(module: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in module.parameters())


def full_tensor(x: Tensor) -> Tensor:
    """A plain tensor of a possibly sharded one. Every rank must call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_to_cpu(x: Tensor, keep: bool) -> Tensor:
    """full_tensor(x) on the CPU, since a GPU may not hold all of them; empty where keep is False.

    A tensor that is not sharded is returned as it is. Every rank must call it.
    """
    if not isinstance(x, DTensor):
        return x
    full = x.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def shard_like(x: Tensor, like: Tensor) -> Tensor:
    """A plain tensor, sharded as `like` is."""
    if isinstance(like, DTensor) and x.shape == like.shape:
        return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)
    return x


@contextmanager
def sync_gradients(module: nn.Module, now: bool) -> Iterator[None]:
    """Context manager: inside it backward averages gradients over ranks (now=True), or leaves them for a later one."""
    module.set_requires_gradient_sync(now)  # type: ignore[operator]
    yield


def is_fsdp(module: nn.Module | None) -> bool:
    """Whether a module was sharded by fully_shard, which then averages its gradients."""
    return hasattr(module, "set_requires_gradient_sync")


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together: a plain scalar tensor on every rank."""
    return full_tensor(torch.nn.utils.get_total_norm(gradients))

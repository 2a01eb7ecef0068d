"""Weights, gradients and the optimizer's state spread over ranks (FSDP), for models that no single device holds twice.

Zhao et al. 2023, arXiv:2304.11277, by torch's fully_shard. A sharded tensor is a DTensor: `whole` and `spread` turn it
into what a checkpoint holds and back, so that checkpoints do not know how many ranks wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from utils.distributed import Ranks


def shard(module: nn.Module, ranks: Ranks, parts: Iterable[nn.Module]) -> nn.Module:
    """The module itself, its parameters spread over ranks; gradients are averaged as by DistributedDataParallel.

    parts: submodules that are gathered by themselves while they are at work, such as the layers of a transformer; each
    is called once in a forward pass. What they leave is gathered for the whole of it. Every rank must then call the
    same things in the same order; other methods than forward within `gathered`. Before the optimizer is made.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for part in (*parts, module):
        # the outermost, too: a forward without a backward would leave it whole, and the optimizer's steps unseen
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    # now, not at the first forward of the whole: a part that is asked first would take itself for the whole
    fully_shard.state(module)._lazy_init()  # type: ignore[attr-defined]
    return module


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The members of every list of modules: the layers of a transformer."""
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList))
    return [layer for part in lists for layer in part if any(True for _ in layer.parameters())]


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within, a sharded module can be asked by any method; the members of its lists still gather themselves."""
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


def whole(x: Tensor) -> Tensor:
    """A tensor with all of its rows. Every rank must ask for it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def collected(x: Tensor, keep: bool) -> Tensor:
    """whole(x) on the host, since a device may have no room for all of them; empty where it is not to be kept.

    Of what is not spread, the tensor itself. Every rank must ask for it.
    """
    if not isinstance(x, DTensor):
        return x
    full = x.full_tensor()
    return full.cpu() if keep else full.new_empty(0)


def spread(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, laid out as `like` is."""
    if isinstance(like, DTensor) and x.shape == like.shape:
        return distribute_tensor(x.to(like.device), like.device_mesh, like.placements)
    return x


@contextmanager
def gradients_averaged(module: nn.Module, now: bool) -> Iterator[None]:
    """Within, backward averages gradients over ranks, or leaves that to a later one."""
    module.set_requires_gradient_sync(now)  # type: ignore[operator]
    yield


def gathers(module: nn.Module | None) -> bool:
    """Whether a module's gradients are averaged by fully_shard."""
    return hasattr(module, "set_requires_gradient_sync")


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a plain scalar on every rank."""
    return whole(torch.nn.utils.get_total_norm(gradients))

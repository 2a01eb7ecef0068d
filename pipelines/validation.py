"""Validation losses: means over the fixed texts of a ValidationSampler. Each rank computes its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipelines.data.batch_sampler import ValidationSampler
from utils.distributed import DistContext


def mean_losses(
    dist: DistContext,
    batch_sampler: ValidationSampler,
    names: Sequence[str],
    fn: Callable[[int], Mapping[str, Tensor]],
) -> dict[str, float]:
    """Means over all texts of the sampler, on all ranks. Every rank must call it. Waits for the device once.

    fn: micro-batch -> values (b,) of its texts by name; it may return more than `names`.
    """
    sums = torch.zeros(len(names), device=dist.device)
    for micro in batch_sampler.micro_batches:
        values = fn(micro)
        sums = sums + torch.stack([values[name].float().sum() for name in names])
    return dict(zip(names, (dist.sum(sums) / batch_sampler.num_examples).tolist(), strict=True))

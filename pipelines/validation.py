"""Validation losses: means over the fixed texts of a ValidationSampler, of which each rank does its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipelines.data.batch_sampler import ValidationSampler
from utils.distributed import DistContext


def mean_losses(
    dist: DistContext, batch_sampler: ValidationSampler, names: Sequence[str], values: Callable[[int], Mapping[str, Tensor]]
) -> dict[str, float]:
    """The mean over all texts of the sampler, whichever rank had them. Every rank must ask. Waits for the device once.

    values: micro-batch -> (b,) by name, of its texts; each of `names` among them.
    """
    sums = torch.zeros(len(names), device=dist.device)
    for micro in batch_sampler.micro_batches:
        found = values(micro)
        sums = sums + torch.stack([found[name].float().sum() for name in names])
    return dict(zip(names, (dist.sum(sums) / batch_sampler.num_examples).tolist(), strict=True))

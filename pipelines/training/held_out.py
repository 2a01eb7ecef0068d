"""Validation losses: means over the fixed texts of a HeldOutPlan, of which each rank does its share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from pipelines.data.batch_sampler import BatchPlan
from utils.distributed import Ranks


def held_out_means(
    ranks: Ranks, plan: BatchPlan, names: Sequence[str], values: Callable[[int], Mapping[str, Tensor]]
) -> dict[str, float]:
    """The mean over all texts of the plan, whichever rank had them. Every rank must ask. Waits for the device once.

    values: micro-batch -> (b,) by name, of its texts; each of `names` among them.
    """
    sums = torch.zeros(len(names), device=ranks.device)
    for micro in plan.pieces:
        found = values(micro)
        sums = sums + torch.stack([found[name].float().sum() for name in names])
    return dict(zip(names, (ranks.sum(sums) / plan.total).tolist(), strict=True))

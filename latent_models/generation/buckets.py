"""Rows of a batch in parts of like length, such that writing them all costs least."""

from __future__ import annotations

import torch
from torch import Tensor


def buckets(lengths: Tensor, step_rows: float) -> list[Tensor]:
    """Rows (n,) in parts of like length, such that writing all parts costs least.

    lengths: (n,), in tokens. A part costs its longest length times (its rows + step_rows): the exact optimum over all
    cuts of the sorted rows.
    """
    order = lengths.argsort(stable=True)
    length, n = lengths[order].double(), len(lengths)
    best, cut = (
        torch.zeros(n + 1, dtype=torch.float64),
        [0] * (n + 1),
    )  # of the first i rows; where their last part begins
    places = torch.arange(n + 1)
    for i in range(1, n + 1):
        cost = best[:i] + length[i - 1] * (i - places[:i] + step_rows)
        cut[i] = int(cost.argmin())
        best[i] = cost[cut[i]]
    parts, end = [], n
    while end:
        parts.append(order[cut[end] : end])
        end = cut[end]
    return parts[::-1]

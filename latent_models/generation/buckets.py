"""Splitting a batch into parts of similar length, so that decoding them costs least."""

from __future__ import annotations

import torch
from torch import Tensor


def buckets(lengths: Tensor, step_rows: float) -> list[Tensor]:
    """Row numbers of each part, of similar length, such that decoding all parts costs least.

    lengths: (n,), in tokens. A part costs its longest length times (its rows + step_rows): the exact optimum over all
    cuts of the sorted rows.
    """
    order = lengths.argsort(stable=True)
    length, n = lengths[order].double(), len(lengths)
    best = torch.zeros(n + 1, dtype=torch.float64)  # cost of the first i rows
    cut = [0] * (n + 1)  # where the last part of the first i rows starts
    counts = torch.arange(n + 1)
    for i in range(1, n + 1):
        cost = best[:i] + length[i - 1] * (i - counts[:i] + step_rows)
        cut[i] = int(cost.argmin())
        best[i] = cost[cut[i]]
    parts, end = [], n
    while end:
        parts.append(order[cut[end] : end])
        end = cut[end]
    return parts[::-1]

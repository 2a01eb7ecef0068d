"""Examples of a micro-batch in words, for the error about a loss that is not finite (utils.finite)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.data.batch_sampler import BatchSampler

MOST = 5  # examples that are named


def describe_rows(sampler: BatchSampler, n: int, step: int, micro: int, positions: list[int]) -> str:
    """Which of the n texts of the split these positions of a micro-batch are."""
    rows = sampler.rows(step, micro, n)[positions].tolist()
    return f"text {_join(rows)} of the split, counted from 0"


def describe_times(
    sampler: BatchSampler,
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    step: int,
    micro: int,
    positions: list[int],
    device: torch.device | str,
) -> str:
    """Noise levels of these positions. draw: of the timestep sampler, which gives the same times again on the device
    of training."""
    t, _ = sampler.rng(step, micro, device).sample_global(draw, "time")
    return f"noise level t {_join([f'{x:.3g}' for x in t[positions].tolist()])}"


def _join(items: list) -> str:
    return ", ".join(map(str, items[:MOST])) + (f" and {len(items) - MOST} more" if len(items) > MOST else "")

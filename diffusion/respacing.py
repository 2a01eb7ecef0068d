"""Respacing: sampling along any subset of a chain's steps.

    kept_steps(spec, T) -> step indices, falling         kept_steps("ddim50", 1000), kept_steps([0, 4, 9], 10)
    respaced_grid(T, kept) -> times (n + 1,) for any sampler

A sampler takes transitions of any length, so a subset of steps is a grid, and nothing is built anew: between two kept
steps beta is what the chain loses between them, both posterior variances follow from it, and the network is told the
time of the chain that it was trained on. It equals the chain of betas 1 - alpha_bar_i / alpha_bar_j of
Nichol & Dhariwal 2021, arXiv:2102.09672, section 4, with their map of indices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def kept_steps(spec: str | Sequence[int], timesteps: int) -> list[int]:
    """Indices of the steps to keep, falling, each of 0, ..., T - 1.

    spec: "ddimN": N steps at one whole stride from 0. Song et al. 2021, arXiv:2010.02502.
        "N1,N2,...": the chain in as many equal sections (the first ones a step longer), N_k steps of section k, spread
        evenly from its first to its last. "N" alone spreads N steps over the whole chain.
        "at:I1,I2,...", or a sequence of numbers: these steps.
    ValueError, one line, for what is none of these or does not fit.
    """
    if not isinstance(spec, str):
        return _explicit(list(spec), timesteps)
    if spec.startswith("ddim"):
        return _strided(_numbers(spec.removeprefix("ddim"), spec), timesteps)
    if spec.startswith("at:"):
        return _explicit(_numbers(spec.removeprefix("at:"), spec), timesteps)
    return _sections(_numbers(spec, spec), timesteps)


def respaced_grid(timesteps: int, kept: Sequence[int]) -> Tensor:
    """(n + 1,) float64: times (i + 1) / T of the kept steps, falling, then 0.

    Where the last step of the chain is not kept, sampling starts later than t = 1, still from pure noise, as published.
    """
    steps = sorted(set(kept), reverse=True)
    if not steps:
        raise ValueError("no step of the chain is kept: keep 1 or more")
    return torch.tensor([*(i + 1 for i in steps), 0], dtype=torch.float64) / timesteps


def _numbers(text: str, spec: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"the respacing {spec!r} is none of ddimN, N1,N2,... and at:I1,I2,...") from None


def _explicit(steps: list[int], timesteps: int) -> list[int]:
    wrong = [i for i in steps if not 0 <= i < timesteps]
    if wrong or not steps:
        found = f"step {wrong[0]}" if wrong else "no step"
        raise ValueError(f"{found} cannot be kept of a chain of {timesteps}: its steps are 0 to {timesteps - 1}")
    return sorted(set(steps), reverse=True)


def _strided(numbers: list[int], timesteps: int) -> list[int]:
    possible = {len(range(0, timesteps, stride)): stride for stride in range(timesteps, 0, -1)}
    (n, *more) = numbers
    if more or n not in possible:
        near = sorted(possible, key=lambda count: abs(count - n))[:2]
        raise ValueError(
            f"no whole stride leaves ddim{','.join(map(str, numbers))} of {timesteps} steps: "
            f"use ddim{' or ddim'.join(map(str, sorted(near)))}, or the number alone"
        )
    return list(range(0, timesteps, possible[n]))[::-1]


def _sections(counts: list[int], timesteps: int) -> list[int]:
    size, longer = divmod(timesteps, len(counts))
    kept: list[int] = []
    start = 0
    for k, count in enumerate(counts):
        length = size + (k < longer)
        if not 1 <= count <= length:
            raise ValueError(f"{count} steps do not fit into section {k + 1} of the chain, which has {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 0
        kept += [start + round(j * stride) for j in range(count)]
        start += length
    return sorted(set(kept), reverse=True)

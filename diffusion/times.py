"""Times drawn for training. Those that a sampler walks are in diffusion/grids.

A draw is (n, generator) -> t (n,), weight (n,): the loss at t[i] is multiplied by weight[i], which is 1 here and what
makes the mean unbiased where t is not uniform (diffusion/importance).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor


class Draw(Protocol):
    def __call__(
        self, n: int, generator: torch.Generator | None = None, *, t_max: float = 1.0, timesteps: int | None = None
    ) -> tuple[Tensor, Tensor]: ...


def draw_uniform(
    n: int, generator: torch.Generator | None = None, *, t_max: float = 1.0, timesteps: int | None = None
) -> tuple[Tensor, Tensor]:
    """t (n,) independent and uniform, weight (n,) of ones; float32, on the device of the generator.

    t_max: the upper end of the range, for an annealed one (diffusion/curricula).
    timesteps: None for t in [0, t_max); T of a discrete chain for t = (i + 1) / T, i uniform in {0, ..., t_max T - 1}.
    """
    return _in_range(_uniform(n, generator), t_max, timesteps)


def draw_stratified(
    n: int, generator: torch.Generator | None = None, *, t_max: float = 1.0, timesteps: int | None = None
) -> tuple[Tensor, Tensor]:
    """As draw_uniform, each t uniform by itself, but the n of them evenly spread: less variance in the mean loss.

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1. In random order, so that a slice is no range of t.
    """
    offset = _uniform(1, generator)
    order = torch.randperm(n, generator=generator, device=offset.device)
    return _in_range((offset + order / n).remainder(1), t_max, timesteps)


DRAWS: Mapping[str, Draw] = {"uniform": draw_uniform, "stratified": draw_stratified}


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device if generator is not None else "cpu")


def _in_range(u: Tensor, t_max: float, timesteps: int | None) -> tuple[Tensor, Tensor]:
    """u (n,) in [0, 1) -> t (n,) up to t_max, weight (n,)."""
    if timesteps is None:
        t = u * t_max
    else:
        steps = max(1, round(t_max * timesteps))
        t = ((u * steps).floor().clamp(max=steps - 1) + 1) / timesteps
    return t, torch.ones_like(t)

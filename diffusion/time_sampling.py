"""Sampling of training timesteps, and schedules of their range. Timesteps of samplers are in diffusion/timesteps.

    TIME_SAMPLERS: name -> (n, generator) -> t (n,), weight (n,)      --schedule_sampler
    max_time(name, step, num_steps, ...) -> upper end of the range    --T_schedule

The loss at t[i] is multiplied by weight[i], which makes the mean loss unbiased where t is not uniform
(diffusion/importance_sampling); it is 1 for uniform times. The losses of UNWEIGHTED samplers (diffusion/options) are
not multiplied: noise levels that are drawn more often count more.

Annealed range of noise levels: training starts on the clean fifth of the chain, and the range grows to the whole chain
over the first half of training. Only the timesteps of training are limited: validation and sampling always use the
whole range. The range depends on the step, not on losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from diffusion.adaptive_times import EvenLoss
from diffusion.importance_sampling import LossSecondMoment, sample_fixstep


class TimeSampler(Protocol):
    def __call__(
        self, n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
    ) -> tuple[Tensor, Tensor]: ...


def sample_uniform(
    n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
) -> tuple[Tensor, Tensor]:
    """t (n,) independent and uniform, weight (n,) of ones; float32, on the device of the generator.

    max_time: the upper end of the range. timesteps: None for t in [0, max_time); T of a discrete chain for
    t = (i + 1) / T, i uniform in {0, ..., max_time T - 1}.
    """
    return _in_range(_uniform(n, generator), max_time, timesteps)


def sample_stratified(
    n: int, generator: torch.Generator | None = None, *, max_time: float = 1.0, timesteps: int | None = None
) -> tuple[Tensor, Tensor]:
    """As sample_uniform: each t is uniform, but all n are evenly spread, so the mean loss has less variance.

    Source: Kingma et al. 2021, arXiv:2107.00630, appendix I.1. In random order, so that a slice covers the range.
    """
    offset = _uniform(1, generator)
    order = torch.randperm(n, generator=generator, device=offset.device)
    return _in_range((offset + order / n).remainder(1), max_time, timesteps)


def sample_logit_normal(
    n: int,
    generator: torch.Generator | None = None,
    *,
    max_time: float = 1.0,
    timesteps: int | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """t (n,) with logit t ~ N(mean, std^2): most in the middle of the range, few at either end. Stratified.

    mean: above 0: more often where there is noise. weight (n,): the inverse density, which is not for the loss.
    Source: Esser et al. 2024, arXiv:2403.03206, eq. 19; Hu et al. 2026, arXiv:2605.10938 (ELF), with mean 0.8 and std
    0.8 (they count time from noise, so theirs is -0.8).
    """
    offset = _uniform(1, generator)
    order = torch.randperm(n, generator=generator, device=offset.device)
    smallest = torch.finfo(offset.dtype).eps
    logit = mean + std * torch.special.ndtri((offset + order / n).remainder(1).clamp(smallest, 1 - smallest))
    u = torch.sigmoid(logit)
    density = torch.exp(-((logit - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * u * (1 - u))
    return _in_range(u, max_time, timesteps)[0], 1 / density


TIME_SAMPLERS: Mapping[str, TimeSampler] = {  # --schedule_sampler; those of STATEFUL_SAMPLERS have a state
    "uniform": sample_uniform,
    "stratified": sample_stratified,
    "fixstep": sample_fixstep,
    "logit_normal": sample_logit_normal,
}
STATEFUL_SAMPLERS: Mapping[str, type[LossSecondMoment] | type[EvenLoss]] = {  # --schedule_sampler; they see the losses
    "lossaware": LossSecondMoment,
    "adaptive": EvenLoss,
}


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device if generator is not None else "cpu")


def _in_range(u: Tensor, max_time: float, timesteps: int | None) -> tuple[Tensor, Tensor]:
    """u (n,) in [0, 1) -> t (n,) up to max_time, weight (n,)."""
    if timesteps is None:
        t = u * max_time
    else:
        steps = max(1, round(max_time * timesteps))
        t = ((u * steps).floor().clamp(max=steps - 1) + 1) / timesteps
    return t, torch.ones_like(t)


RESOLUTION = 1000  # T of continuous time: the range grows in thousandths


def _normal(step: int, num_steps: int, timesteps: int, power: float) -> int:
    return timesteps


def _growing(share: Callable[[float, float], float]) -> Callable[[int, int, int, float], int]:
    """share: (progress s in [0, 1) over the first half of training, power) -> share of the way from T / 5 to T."""

    def growing(step: int, num_steps: int, timesteps: int, power: float) -> int:
        half = num_steps // 2
        if step >= half:
            return timesteps
        initial = timesteps // 5
        return min(timesteps, max(1, int(initial + share(step / half, power) * (timesteps - initial))))

    return growing


def _unsmooth(step: int, num_steps: int, timesteps: int, power: float) -> int:
    half = num_steps // 2
    if step >= half:
        return timesteps
    return max(1, (4 * step // half + 1) * timesteps // 5)  # T/5, 2T/5, 3T/5, 4T/5 on the quarters


T_SCHEDULES: Mapping[str, Callable[[int, int, int, float], int]] = {
    "normal": _normal,
    "linear": _growing(lambda s, power: s),
    "polynomial": _growing(lambda s, power: s**power),
    "cosine": _growing(lambda s, power: 1 - 0.5 * (1 + math.cos(math.pi * s))),
    "unsmooth": _unsmooth,
}


def max_timestep(name: str, step: int, num_steps: int, timesteps: int = RESOLUTION, power: float = 2.0) -> int:
    """T(step): training samples i from {0, ..., T(step) - 1}.

    step: optimizer steps done, of num_steps. timesteps: T of the chain. power: exponent of "polynomial" only.
    """
    if name not in T_SCHEDULES:
        raise ValueError(f"unknown T schedule {name!r}: use one of {', '.join(T_SCHEDULES)}")
    return T_SCHEDULES[name](step, num_steps, timesteps, power)


def max_time(name: str, step: int, num_steps: int, timesteps: int | None = None, power: float = 2.0) -> float:
    """T(step) / T, in (0, 1]: the upper end of the times to sample. timesteps None: continuous time."""
    resolution = timesteps or RESOLUTION
    return max_timestep(name, step, num_steps, resolution, power) / resolution

"""Noise schedules: the amplitudes of signal and noise at time t.

A schedule maps t in [0, 1] (0 is clean) to amplitudes, of any shape, on any device, in any floating dtype. Those of
this file are closed formulas in continuous time; a discrete chain (diffusion/discrete_schedules) has the same
interface, so a function that takes a schedule takes either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.noise_levels import (
    CLAMP,
    NoiseLevel,
    Schedule,
    broadcast_level,
    from_log_snr,
    from_shifted_log_snr,
    log_snr,
    num_timesteps,
    upcast,
)

__all__ = [  # also the names of diffusion/noise_levels that users of a schedule need
    "CLAMP",
    "CONTINUOUS_SCHEDULES",
    "ContinuousSchedule",
    "NoiseLevel",
    "Schedule",
    "broadcast_level",
    "from_log_snr",
    "log_snr",
    "make_continuous_schedule",
    "num_timesteps",
    "upcast",
]


def cosine(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = cos^2(pi t / 2).

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17, with their offset s = 0.
    t: any shape, in [0, 1]. Returns NoiseLevel(alpha, sigma), each shaped like t.
    """
    t = upcast(t)
    # cos(pi t / 2) as sin(pi (1 - t) / 2), because in float32 cos(pi / 2) is negative and its log nan
    signal, noise = torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)
    return from_shifted_log_snr(2 * (signal.log() - noise.log()), scale)


def simple_linear(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = 1 - t. Chen 2023, arXiv:2301.10972, Algorithm 1. Shapes as in cosine."""
    t = upcast(t)
    return from_shifted_log_snr(torch.log1p(-t) - t.log(), scale)


def beta_linear(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = exp(-1e-4 - 10 t^2), the linear-beta chain in the limit of many steps. Shapes as in cosine.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 33, with beta_min = 0 and the offset 1e-4 of the reference.
    """
    t = upcast(t)
    return from_shifted_log_snr(-torch.expm1(1e-4 + 10 * t**2).log(), scale)


def sigmoid(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = (S(3) - S(6 t - 3)) / (S(3) - S(-3)), S the logistic function. Shapes as in cosine.

    Source: Jabri et al. 2022, arXiv:2212.11972, with start -3, end 3, temperature 1.
    """
    t = upcast(t)
    # S(a) - S(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)): in the SNR the cosh factors cancel
    return from_shifted_log_snr(torch.sinh(3 * (1 - t)).log() - torch.sinh(3 * t).log(), scale)


def sqrt(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = 1 - sqrt(t + 1e-4), noisy from the start: sigma(0) = 0.1. Shapes as in cosine.

    Source: Li et al. 2022, arXiv:2205.14217, appendix A, for token embeddings, whose nearest neighbors are far.
    """
    t = upcast(t)
    root = (t + 1e-4).sqrt()
    rest = (1 - 1e-4 - t).clamp(min=0)  # 1 - root = rest / (1 + root), without cancellation; none from t = 0.9999 on
    return from_shifted_log_snr(rest.log() - torch.log1p(root) - root.log(), scale)


CONTINUOUS_SCHEDULES: Mapping[str, Callable[[Tensor, float], NoiseLevel]] = {
    "cosine": cosine,
    "simple_linear": simple_linear,
    "beta_linear": beta_linear,
    "sigmoid": sigmoid,
    "sqrt": sqrt,
}


@dataclass(frozen=True)
class ContinuousSchedule:
    """A continuous schedule bound to its scale."""

    name: str
    scale: float = 1.0
    timesteps = None  # not a chain

    def __call__(self, t: Tensor) -> NoiseLevel:
        return CONTINUOUS_SCHEDULES[self.name](t, self.scale)


def make_continuous_schedule(name: str, scale: float = 1.0) -> ContinuousSchedule:
    """A schedule of CONTINUOUS_SCHEDULES. ValueError for an unknown name or a scale that is not positive."""
    if name not in CONTINUOUS_SCHEDULES:
        raise ValueError(f"unknown continuous schedule {name!r}: use one of {', '.join(CONTINUOUS_SCHEDULES)}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"the scale of a schedule is {scale}: use a positive number; 1 is the unscaled schedule")
    return ContinuousSchedule(name, float(scale))

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
    linear_from_shifted_log_snr,
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


TAN_D = 9.0


def tan(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """tan-d: alpha / sigma = 1 / (d tan(pi t / 2)), d = 9 / scale. Shapes as in cosine.

    alpha_bar(t) = 1 / (1 + d^2 tan^2(pi t / 2)): the cosine schedule with 1 / d times its signal-to-noise amplitude, so
    that even little noise is hard to remove, which suits latents that tolerate noise. With scale 9 it is `cosine`.
    Source: Shabalin et al. 2024, arXiv:2402.19097 (TEncDM), whose d is 9; Meshchaninov et al. 2025, arXiv:2506.21170
    (COSMOS).
    """
    t = upcast(t)
    # 1 / tan(pi t / 2) as in cosine
    signal, noise = torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)
    return from_shifted_log_snr(2 * (signal.log() - noise.log()), scale / TAN_D)


def rectified_flow(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """The linear path z_t = (1 - t) x0 + t eps, which is not variance-preserving. Shapes as in cosine.

    scale divides the odds t / (1 - t): the timestep shift of Esser et al. 2024, arXiv:2403.03206, eq. 23, by 1 / scale.
    Source: Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747. With --objective pred_flow the
    network predicts the velocity eps - x0.
    """
    t = upcast(t)
    return linear_from_shifted_log_snr(2 * (torch.log1p(-t) - t.log()), scale)


BASE_DIMENSION = 4096  # numbers of a latent for which the unscaled schedules are made


def scale_for_dimension(dimension: int) -> float:
    """sqrt(4096 / dimension), a value of --scale for latents of so many numbers (positions times channels).

    The more numbers describe a text, the more noise it takes to hide it; with fewer than 4096 numbers there is less
    noise at every t than in the unscaled schedule.
    Source: Zheng et al. 2025, arXiv:2510.11690 (RAE): t -> a t / (1 + (a - 1) t), a = sqrt(dimension / 4096), on
    the linear path, which is a shift of the log-SNR by -2 log a. Esser et al. 2024 have it for resolutions of images.
    """
    return math.sqrt(BASE_DIMENSION / dimension)


CONTINUOUS_SCHEDULES: Mapping[str, Callable[[Tensor, float], NoiseLevel]] = {
    "cosine": cosine,
    "simple_linear": simple_linear,
    "beta_linear": beta_linear,
    "sigmoid": sigmoid,
    "sqrt": sqrt,
    "tan": tan,
    "rectified_flow": rectified_flow,
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

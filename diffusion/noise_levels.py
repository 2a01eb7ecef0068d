"""Noise levels: the amplitudes of signal and noise in a latent, or their log-SNR.

A schedule is a function t -> NoiseLevel; those that a flag names are in diffusion/schedules and
diffusion/discrete_schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseLevel(NamedTuple):
    """z_t = alpha * x0 + sigma * eps. Amplitudes, not powers: alpha_bar = alpha ** 2."""

    alpha: Tensor  # signal amplitude
    sigma: Tensor  # noise amplitude


Schedule = Callable[[Tensor], NoiseLevel]

CLAMP = 15.0  # nats; before the shift, as in the reference: it determines 1 / alpha(1), hence the first sampling step


def from_log_snr(log_snr: Tensor) -> NoiseLevel:
    """Variance-preserving level: alpha_bar = sigmoid(log_snr). Kingma et al. 2021, arXiv:2107.00630.

    Exactly (1, 0) at log_snr = inf.
    """
    # sigmoid(-x), not 1 - sigmoid(x): the difference is 17 % wrong in float32 at log_snr = 15
    return NoiseLevel(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())


def power(level: NoiseLevel) -> Tensor:
    """alpha^2 + sigma^2, the variance of z_t where the data is N(0, I): exactly 1 for a variance-preserving level.

    z_t / sqrt(power) is the z_t of the variance-preserving level with the same log-SNR.
    """
    total = level.alpha**2 + level.sigma**2
    return torch.where((total - 1).abs() < 1e-5, torch.ones_like(total), total)  # rounding is not a change of variance


def log_snr(level: NoiseLevel) -> Tensor:
    """2 (log alpha - log sigma), in nats; inf where there is no noise."""
    return 2 * (level.alpha.log() - level.sigma.log())


def step_variance(level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """Variance of z_t given z_s, s < t: beta_t of a chain. Kingma et al. 2021, arXiv:2107.00630, eq. 22."""
    variance = level_t.sigma**2 - (level_t.alpha / level_s.alpha * level_s.sigma) ** 2
    return variance.clamp(min=0)  # at equal (clamped) levels rounding could give a negative number


def broadcast_level(schedule: Schedule, t: Tensor, like: Tensor) -> NoiseLevel:
    """The level of each example, ready to multiply `like` (B, ...): t (B,) -> amplitudes (B, 1, ...), dtype of like."""
    level = schedule(t.view(-1, *(1,) * (like.dim() - 1)))
    return NoiseLevel(level.alpha.to(like.dtype), level.sigma.to(like.dtype))


def num_timesteps(schedule: Schedule) -> int | None:
    """T of a discrete chain, None for a continuous schedule."""
    return getattr(schedule, "timesteps", None)


def upcast(t: Tensor) -> Tensor:
    """float32 at least: half precision rounds t = 0.999 to 1."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def from_shifted_log_snr(log_snr: Tensor, scale: float) -> NoiseLevel:
    """The level of log_snr + 2 log scale: scale < 1 adds noise at every t. Chen 2023, arXiv:2301.10972.

    log_snr may be infinite at the ends.
    """
    return from_log_snr(_shift(log_snr, scale))


def linear_from_shifted_log_snr(log_snr: Tensor, scale: float) -> NoiseLevel:
    """The same on the linear path: alpha + sigma = 1, so alpha = sigmoid(log_snr / 2). Not variance-preserving."""
    half = _shift(log_snr, scale) / 2
    return NoiseLevel(torch.sigmoid(half), torch.sigmoid(-half))


def _shift(log_snr: Tensor, scale: float) -> Tensor:
    return log_snr.clamp(-CLAMP, CLAMP) + 2 * math.log(scale)

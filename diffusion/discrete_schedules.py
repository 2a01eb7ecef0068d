"""Discrete noise schedules: chains of T steps, given by their betas.

    make_discrete_schedule(name, T) -> DiscreteSchedule, a schedule t -> NoiseLevel with .timesteps = T
    DISCRETE_SCHEDULES: name -> (T -> betas (T,) float64)

Step i (0 is the cleanest) has the time t = (i + 1) / T; t = 0 is exactly clean. A subset of the steps is a
list of times (diffusion/timesteps), not another chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffusion.noise_levels import NoiseLevel, from_log_snr, upcast

MAX_BETA = 0.999  # with a beta of 1 no signal is left, and the log-SNR is -inf


def linear_betas(timesteps: int) -> Tensor:
    """beta from 1e-4 to 0.02, both times 1000 / T, (T,) float64. Ho et al. 2020, arXiv:2006.11239.

    Differs from them: capped at 0.999, or a chain shorter than 20 steps would have betas above 1.
    """
    rate = 1000 / timesteps
    return _ramp(1e-4 * rate, 0.02 * rate, timesteps)


def cosine_betas(timesteps: int) -> Tensor:
    """beta_i = 1 - f(i + 1) / f(i),  f(i) = cos^2((i / T + s) / (1 + s) pi / 2),  s = 0.008; (T,) float64, up to 0.999.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """
    return _betas_of(_cosine(_fractions(timesteps), 0.008))


def sqrt_betas(timesteps: int) -> Tensor:
    """beta_i = 1 - f(i + 1) / f(i),  f(i) = 1 - sqrt(i / T + 1e-4), (T,) float64. Li et al. 2022, arXiv:2205.14217."""
    return _betas_of(1 - (_fractions(timesteps) + 1e-4).sqrt())


def trunc_cos_betas(timesteps: int) -> Tensor:
    """alpha_bar_i = f(i) = cos^2((i / T + s) / (1 + s) pi / 2),  s = 0.1, (T,) float64: noisy from the first step on.

    The cosine chain without its clean end, shifted by one step: beta_0 = 1 - f(0). Li et al. 2022, their code.
    """
    f = _cosine(_fractions(timesteps)[:-1], 0.1)
    return _betas_of(torch.cat([torch.ones(1, dtype=f.dtype), f]))


def trunc_lin_betas(timesteps: int) -> Tensor:
    """The linear betas plus 0.01 at both ends, (T,) float64. Li et al. 2022, their code. Capped as linear_betas."""
    rate = 1000 / timesteps
    return _ramp(1e-4 * rate + 0.01, 0.02 * rate + 0.01, timesteps)


def pw_lin_betas(timesteps: int) -> Tensor:
    """Piecewise linear, (T,) float64: ten betas from 1e-4 r + 0.01 down to 1e-4 r, then up to 0.02 r, r = 1000 / T.

    Source: Li et al. 2022, their code. Differs from it: below 20 steps the first piece is half of the chain.
    """
    rate = 1000 / timesteps
    first = min(10, timesteps // 2)
    # built from its noisy end: a piece of one step is the noisy one
    second = _ramp(0.02 * rate, 1e-4 * rate, timesteps - first).flip(0)
    return torch.cat([_ramp(1e-4 * rate + 0.01, 1e-4 * rate, first), second])


def warmup_decay_betas(timesteps: int) -> Tensor:
    """The sqrt betas, of which the last tenth falls linearly to 1e-4, (T,) float64. Gong et al. 2023, their code.

    That tenth has at least one beta. The signal does not vanish at the end: alpha_bar is 0.03.
    """
    betas = sqrt_betas(timesteps)
    tenth = max(1, int(0.1 * timesteps))
    return torch.cat([betas[:-tenth], _ramp(float(betas[-tenth]), 1e-4, tenth)])


def _ramp(start: float, end: float, n: int) -> Tensor:
    return torch.linspace(start, end, n, dtype=torch.float64).clamp(max=MAX_BETA)


def _fractions(timesteps: int) -> Tensor:
    """i / T for i = 0, ..., T."""
    return torch.arange(timesteps + 1, dtype=torch.float64) / timesteps


def _cosine(x: Tensor, offset: float) -> Tensor:
    return torch.cos((x + offset) / (1 + offset) * math.pi / 2) ** 2


def _betas_of(alpha_bar: Tensor) -> Tensor:
    """Ratios of neighboring values of a falling curve (T + 1,), as betas (T,)."""
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(0, MAX_BETA)


DISCRETE_SCHEDULES: Mapping[str, Callable[[int], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sqrt": sqrt_betas,
    "trunc_cos": trunc_cos_betas,
    "trunc_lin": trunc_lin_betas,
    "pw_lin": pw_lin_betas,
    "warmup-decay": warmup_decay_betas,
}


class DiscreteSchedule:
    """A discrete chain as a schedule: t = (i + 1) / T holds alpha_bar_i, t = 0 is exactly clean.

    Between nodes log-SNR is interpolated linearly. Below the first node, where a chain has no step, sigma falls to zero
    in proportion to t.
    """

    def __init__(self, betas: Tensor, name: str = "chain") -> None:
        self.name = name
        self.timesteps = len(betas)
        log_alpha_bar = torch.log1p(-betas.to("cpu", torch.float64)).cumsum(0)
        self.log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))  # (T,) float64, log_snr[i] at (i + 1) / T
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"DiscreteSchedule({self.name!r}, timesteps={self.timesteps})"

    def __call__(self, t: Tensor) -> NoiseLevel:
        """t: any shape, in [0, 1]. Returns NoiseLevel(alpha, sigma), each shaped like t."""
        t = upcast(t)
        nodes = self._nodes(t.device, t.dtype)
        index = t * self.timesteps - 1  # node i has the index i
        nearest = index.round()
        # nodes are exact: 0.999 * 1000 is not 999 in float32, and the last gap of the cosine chain is 7 nats
        index = torch.where((index - nearest).abs() < 1e-3, nearest, index)
        lower = index.floor().clamp(0, max(self.timesteps - 2, 0)).long()
        upper = (lower + 1).clamp(max=self.timesteps - 1)
        inside = torch.lerp(nodes[lower], nodes[upper], (index - lower).clamp(0, 1))
        below = nodes[0] - 2 * torch.log((index + 1).clamp(0, 1))
        return from_log_snr(torch.where(index < 0, below, inside))

    def _nodes(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The nodes on a device; cached, because a copy to a GPU makes the host wait."""
        key = (device, dtype)
        if key not in self._copies:
            self._copies[key] = self.log_snr.to(dtype).to(device)  # the dtype first: some devices have no float64
        return self._copies[key]


def make_discrete_schedule(name: str, timesteps: int = 1000) -> DiscreteSchedule:
    """A chain of DISCRETE_SCHEDULES. ValueError for an unknown name or no steps."""
    if name not in DISCRETE_SCHEDULES:
        raise ValueError(f"unknown discrete schedule {name!r}: use one of {', '.join(DISCRETE_SCHEDULES)}")
    if timesteps < 1:
        raise ValueError(f"the number of timesteps of a discrete schedule is {timesteps}: use 1 or more")
    return DiscreteSchedule(DISCRETE_SCHEDULES[name](timesteps), name)

"""Noise schedules: how much signal and how much noise at time t.

A schedule maps t in [0, 1] (0 is clean) to amplitudes, of any shape, on any device, in any floating dtype. It knows
nothing of networks, samplers or text. Continuous schedules are closed formulas; a discrete chain of T steps is a
schedule with T + 1 nodes, so that whatever takes a schedule takes either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseLevel(NamedTuple):
    """z_t = alpha * x0 + sigma * eps. Amplitudes, not powers: alpha_bar = alpha ** 2."""

    alpha: Tensor  # signal amplitude
    sigma: Tensor  # noise amplitude


Schedule = Callable[[Tensor], NoiseLevel]

CLAMP = 15.0  # nats; before the shift, as in the reference: it decides 1 / alpha(1), hence the first sampling step


def from_log_snr(log_snr: Tensor) -> NoiseLevel:
    """Variance-preserving level: alpha_bar = sigmoid(log_snr). Kingma et al. 2021, arXiv:2107.00630.

    Exactly (1, 0) at log_snr = inf.
    """
    # sigmoid(-x), not 1 - sigmoid(x): the difference is 17 % wrong in float32 at log_snr = 15
    return NoiseLevel(torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt())


def log_snr(level: NoiseLevel) -> Tensor:
    """2 (log alpha - log sigma), in nats; inf where there is no noise."""
    return 2 * (level.alpha.log() - level.sigma.log())


def level_at(schedule: Schedule, t: Tensor, like: Tensor) -> NoiseLevel:
    """The level of each example, ready to multiply `like` (B, ...): t (B,) -> amplitudes (B, 1, ...), dtype of like."""
    level = schedule(t.view(-1, *(1,) * (like.dim() - 1)))
    return NoiseLevel(level.alpha.to(like.dtype), level.sigma.to(like.dtype))


def timesteps_of(schedule: Schedule) -> int | None:
    """T of a discrete chain, None for a continuous schedule."""
    return getattr(schedule, "timesteps", None)


# ---- continuous time -------------------------------------------------------------------------------------------------


def _at_least_float32(t: Tensor) -> Tensor:
    """Half precision cannot tell t = 0.999 from 1."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _shifted(log_snr: Tensor, scale: float) -> NoiseLevel:
    """scale < 1 adds noise at every t: log_snr + 2 log scale. Chen 2023, arXiv:2301.10972. The ends may be infinite."""
    return from_log_snr(log_snr.clamp(-CLAMP, CLAMP) + 2 * math.log(scale))


def cosine(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = cos^2(pi t / 2).

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17, with their offset s = 0.
    t: any shape, in [0, 1]. Returns NoiseLevel(alpha, sigma), each shaped like t.
    """
    t = _at_least_float32(t)
    # cos(pi t / 2) as the sine of what is left: in float32 cos(pi / 2) is negative, and its log nan
    signal, noise = torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)
    return _shifted(2 * (signal.log() - noise.log()), scale)


def simple_linear(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = 1 - t. Chen 2023, arXiv:2301.10972, Algorithm 1. Shapes as in cosine."""
    t = _at_least_float32(t)
    return _shifted(torch.log1p(-t) - t.log(), scale)


def beta_linear(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = exp(-1e-4 - 10 t^2), the linear-beta chain in the limit of many steps. Shapes as in cosine.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 33, with beta_min = 0 and the offset 1e-4 of the reference.
    """
    t = _at_least_float32(t)
    return _shifted(-torch.expm1(1e-4 + 10 * t**2).log(), scale)


def sigmoid(t: Tensor, scale: float = 1.0) -> NoiseLevel:
    """alpha_bar(t) = (S(3) - S(6 t - 3)) / (S(3) - S(-3)), S the logistic function. Shapes as in cosine.

    Source: Jabri et al. 2022, arXiv:2212.11972, with start -3, end 3, temperature 1.
    """
    t = _at_least_float32(t)
    # S(a) - S(b) = sinh((a - b) / 2) / (2 cosh(a / 2) cosh(b / 2)): in the SNR only the two sinh are left
    return _shifted(torch.sinh(3 * (1 - t)).log() - torch.sinh(3 * t).log(), scale)


CONTINUOUS: Mapping[str, Callable[[Tensor, float], NoiseLevel]] = {
    "cosine": cosine,
    "simple_linear": simple_linear,
    "beta_linear": beta_linear,
    "sigmoid": sigmoid,
}


@dataclass(frozen=True)
class Continuous:
    """A continuous schedule bound to its scale."""

    name: str
    scale: float = 1.0
    timesteps = None  # not a chain

    def __call__(self, t: Tensor) -> NoiseLevel:
        return CONTINUOUS[self.name](t, self.scale)


def make_continuous(name: str, scale: float = 1.0) -> Continuous:
    """A schedule of CONTINUOUS. ValueError for an unknown name or a scale that is not positive."""
    if name not in CONTINUOUS:
        raise ValueError(f"no continuous schedule is called {name!r}: use one of {', '.join(CONTINUOUS)}")
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"the scale of a schedule is a positive factor, not {scale}: 1 leaves the schedule as it is")
    return Continuous(name, float(scale))


# ---- discrete chains -------------------------------------------------------------------------------------------------


def linear_betas(timesteps: int) -> Tensor:
    """beta from 1e-4 to 0.02, both times 1000 / T, (T,) float64. Ho et al. 2020, arXiv:2006.11239.

    Differs from them: capped at 0.999, or a chain shorter than 20 steps would have betas above 1.
    """
    rate = 1000 / timesteps
    return torch.linspace(1e-4 * rate, 0.02 * rate, timesteps, dtype=torch.float64).clamp(max=0.999)


def cosine_betas(timesteps: int) -> Tensor:
    """beta_i = 1 - f(i + 1) / f(i),  f(i) = cos^2((i / T + s) / (1 + s) pi / 2),  s = 0.008; (T,) float64, up to 0.999.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17.
    """
    i = torch.arange(timesteps + 1, dtype=torch.float64)
    f = torch.cos((i / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(0, 0.999)


DISCRETE: Mapping[str, Callable[[int], Tensor]] = {"linear": linear_betas, "cosine": cosine_betas}


class Chain:
    """A discrete chain as a schedule: t = (i + 1) / T holds alpha_bar_i, t = 0 is exactly clean.

    Between nodes log-SNR is interpolated linearly. Below the first node, which no chain visits, sigma falls to zero
    in proportion to t.
    """

    def __init__(self, betas: Tensor, name: str = "chain") -> None:
        self.name = name
        self.timesteps = len(betas)
        log_alpha_bar = torch.log1p(-betas.to("cpu", torch.float64)).cumsum(0)
        self.log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))  # (T,) float64, log_snr[i] at (i + 1) / T
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, timesteps={self.timesteps})"

    def __call__(self, t: Tensor) -> NoiseLevel:
        """t: any shape, in [0, 1]. Returns NoiseLevel(alpha, sigma), each shaped like t."""
        t = _at_least_float32(t)
        nodes = self._nodes(t.device, t.dtype)
        place = t * self.timesteps - 1  # node i at i
        nearest = place.round()
        # a node is met exactly: 0.999 * 1000 is not 999 in float32, and the last gap of the cosine chain is 7 nats
        place = torch.where((place - nearest).abs() < 1e-3, nearest, place)
        lower = place.floor().clamp(0, max(self.timesteps - 2, 0)).long()
        upper = (lower + 1).clamp(max=self.timesteps - 1)
        inside = torch.lerp(nodes[lower], nodes[upper], (place - lower).clamp(0, 1))
        below = nodes[0] - 2 * torch.log((place + 1).clamp(0, 1))
        return from_log_snr(torch.where(place < 0, below, inside))

    def _nodes(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The nodes where they are needed; copied once, because a copy to a GPU makes the host wait."""
        key = (device, dtype)
        if key not in self._copies:
            self._copies[key] = self.log_snr.to(dtype).to(device)  # the dtype first: some devices have no float64
        return self._copies[key]


def make_discrete(name: str, timesteps: int = 1000) -> Chain:
    """A chain of DISCRETE. ValueError for an unknown name or no steps."""
    if name not in DISCRETE:
        raise ValueError(f"no discrete schedule is called {name!r}: use one of {', '.join(DISCRETE)}")
    if timesteps < 1:
        raise ValueError(f"a chain of {timesteps} timesteps is no chain: ask for 1 or more")
    return Chain(DISCRETE[name](timesteps), name)

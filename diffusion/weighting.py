"""Weights of the training loss by noise level: (schedule, t (B,), ...) -> (B,). The caller multiplies.

p2_weight(schedule, t, gamma, k)
min_snr_weight(schedule, t, objective, gamma)
error_weight(schedule, t, objective, of)          the squared error of x0, v or flow, whatever the network predicts
x0_error_weight(schedule, t, objective)           that of x0 without a limit
make_weighting(name, objective, gamma) -> (schedule, t) -> (B,)    WEIGHTINGS holds the names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffusion.noise_levels import NoiseLevel, power
from diffusion.objectives import NO_SIGNAL, TARGETS, resolve_objective
from diffusion.schedules import Schedule

Weighting = Callable[[Schedule, Tensor], Tensor]


def p2_weight(schedule: Schedule, t: Tensor, gamma: float, k: float = 1.0) -> Tensor:
    """(k + snr)^-gamma, (B,): less weight where there is little noise; 1 at gamma = 0.

    Source: Choi et al. 2022, arXiv:2204.00227, eq. 7.
    """
    alpha, sigma = schedule(t)
    return (sigma**2 / (k * sigma**2 + alpha**2)) ** gamma  # finite at sigma = 0


def min_snr_weight(schedule: Schedule, t: Tensor, objective: str, gamma: float = 5.0) -> Tensor:
    """min(snr, gamma) on the squared error of x0, (B,), in the units of the network's prediction.

    x0: min(snr, gamma); eps: that over snr; v: that over snr + 1; flow: that over (sqrt(snr) + 1)^2. All are the same
    weight on the error of x0, so the objective does not change the weight of a noise level.
    Source: Hang et al. 2023, arXiv:2303.09556, eq. 8 and section 3.4, with gamma = 5.
    """
    level = schedule(t)
    alpha_bar, noise = (x**2 for x in level)
    tiny = torch.finfo(noise.dtype).tiny  # both ends are limits: no noise at t = 0, no signal where alpha rounds to 0
    weight = MIN_SNR.get(resolve_objective(objective))
    if weight is None:
        raise ValueError(
            f"min-SNR weighting has no formula for the objective {objective!r}: use one of {', '.join(MIN_SNR)}"
        )
    found = weight(alpha_bar, noise, gamma, tiny)
    return found / power(level) ** 2 if resolve_objective(objective) == "v" else found  # 1 where variance-preserving


MIN_SNR: Mapping[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "eps": lambda alpha_bar, noise, gamma, tiny: (gamma * noise / alpha_bar.clamp(min=tiny)).clamp(max=1),
    "x0": lambda alpha_bar, noise, gamma, tiny: (alpha_bar / noise.clamp(min=tiny)).clamp(max=gamma),
    "eps_x0": lambda alpha_bar, noise, gamma, tiny: torch.where(
        alpha_bar < NO_SIGNAL**2,
        (alpha_bar / noise.clamp(min=tiny)).clamp(max=gamma),
        (gamma * noise / alpha_bar.clamp(min=tiny)).clamp(max=1),
    ),
    "v": lambda alpha_bar, noise, gamma, tiny: torch.minimum(alpha_bar, gamma * noise),
    "flow": lambda alpha_bar, noise, gamma, tiny: (
        torch.minimum(alpha_bar, gamma * noise) / (alpha_bar.sqrt() + noise.sqrt()) ** 2
    ),
}


SMALLEST = 0.05  # t_eps of ELF: errors are divided by no smaller number


def _x0_per_unit(level: NoiseLevel, objective: str) -> Tensor:
    """|error of x0| / |error of the prediction|, (B,): to_x0 is linear in the prediction. Large for eps at t = 1."""
    symbol = resolve_objective(objective)
    if symbol == "x0":
        return torch.ones_like(level.sigma)  # the general formula is 0 / 0 without noise
    a, b = TARGETS[symbol](*level)
    return (level.sigma / (b * level.alpha - a * level.sigma)).abs()


def x0_error_weight(schedule: Schedule, t: Tensor, objective: str) -> Tensor:
    """The factor (B,) that turns the squared error of the prediction into that of the estimate of x0."""
    return _x0_per_unit(schedule(t), objective) ** 2


def error_weight(schedule: Schedule, t: Tensor, objective: str, of: str) -> Tensor:
    """The factor (B,) that turns the squared error of the prediction into that of another quantity, x0, v or flow.

    So a network that predicts x0 trains on the error of the velocity, or one that predicts v on that of x0. Divisors
    are 0.05 at least, so that a factor is 400 at most: where there is little noise, any error of x0 is a large one of
    the velocity. Source: Hu et al. 2026, arXiv:2605.10938 (ELF), where x0 is predicted and the loss that of the flow.
    """
    level = schedule(t)
    own = _x0_per_unit(level, objective).clamp(max=1 / SMALLEST)
    return (own / _x0_per_unit(level, of).clamp(min=SMALLEST)) ** 2


def _none(schedule: Schedule, t: Tensor, objective: str, gamma: float) -> Tensor:
    return torch.ones_like(t)


def _error_of(of: str) -> Callable[[Schedule, Tensor, str, float], Tensor]:
    return lambda schedule, t, objective, gamma: error_weight(schedule, t, objective, of)


WEIGHTINGS: Mapping[str, Callable[[Schedule, Tensor, str, float], Tensor]] = {
    "none": _none,
    "min_snr": min_snr_weight,
    "x0": _error_of("x0"),
    "v": _error_of("v"),
    "flow": _error_of("flow"),
}


def make_weighting(name: str, objective: str, gamma: float = 5.0) -> Weighting:
    """A weighting of WEIGHTINGS with its choices bound. ValueError for an unknown name, or a gamma not above 0."""
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown loss weighting {name!r}: use one of {', '.join(WEIGHTINGS)}")
    if not gamma > 0:
        raise ValueError(f"gamma of min-SNR weighting is {gamma}: give a positive number, 5 is usual")
    resolve_objective(objective)
    return lambda schedule, t: WEIGHTINGS[name](schedule, t, objective, gamma)

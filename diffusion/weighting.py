"""Weights of the training loss by noise level: (schedule, t (B,), ...) -> (B,). The caller multiplies.

p2_weight(schedule, t, gamma, k)
min_snr_weight(schedule, t, objective, gamma)
make_weighting(name, objective, gamma) -> (schedule, t) -> (B,)    WEIGHTINGS holds the names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffusion.objectives import resolve_objective
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
    weight on the error of x0, so the objective does not change the weight of a noise level. Variance-preserving.
    Source: Hang et al. 2023, arXiv:2303.09556, eq. 8 and section 3.4, with gamma = 5.
    """
    alpha_bar, noise = (x**2 for x in schedule(t))
    tiny = torch.finfo(noise.dtype).tiny  # both ends are limits: no noise at t = 0, no signal where alpha rounds to 0
    weight = MIN_SNR.get(resolve_objective(objective))
    if weight is None:
        raise ValueError(
            f"min-SNR weighting has no formula for the objective {objective!r}: use one of {', '.join(MIN_SNR)}"
        )
    return weight(alpha_bar, noise, gamma, tiny)


MIN_SNR: Mapping[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "eps": lambda alpha_bar, noise, gamma, tiny: (gamma * noise / alpha_bar.clamp(min=tiny)).clamp(max=1),
    "x0": lambda alpha_bar, noise, gamma, tiny: (alpha_bar / noise.clamp(min=tiny)).clamp(max=gamma),
    "v": lambda alpha_bar, noise, gamma, tiny: torch.minimum(alpha_bar, gamma * noise),
    "flow": lambda alpha_bar, noise, gamma, tiny: (
        torch.minimum(alpha_bar, gamma * noise) / (alpha_bar.sqrt() + noise.sqrt()) ** 2
    ),
}


def _none(schedule: Schedule, t: Tensor, objective: str, gamma: float) -> Tensor:
    return torch.ones_like(t)


WEIGHTINGS: Mapping[str, Callable[[Schedule, Tensor, str, float], Tensor]] = {"none": _none, "min_snr": min_snr_weight}


def make_weighting(name: str, objective: str, gamma: float = 5.0) -> Weighting:
    """A weighting of WEIGHTINGS with its choices bound. ValueError for an unknown name, or a gamma not above 0."""
    if name not in WEIGHTINGS:
        raise ValueError(f"unknown loss weighting {name!r}: use one of {', '.join(WEIGHTINGS)}")
    if not gamma > 0:
        raise ValueError(f"gamma of min-SNR weighting is {gamma}: give a positive number, 5 is usual")
    resolve_objective(objective)
    return lambda schedule, t: WEIGHTINGS[name](schedule, t, objective, gamma)

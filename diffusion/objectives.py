"""Objectives, which define what the network predicts, and conversions between their predictions.

An objective is two coefficients, a row of OBJECTIVES; the rest is linear algebra on

    z_t        = alpha * x0 + sigma * eps
    prediction =     a * x0 +     b * eps

Levels are NoiseLevels whose amplitudes broadcast against z_t (B, L, D); they may come from any schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from diffusion.schedules import NoiseLevel

Coefficient = Tensor | float
NO_SIGNAL = 0.01  # alpha below which a prediction of the noise says nothing of x0
Coefficients = Callable[[Tensor, Tensor], tuple[Coefficient, Coefficient]]


def noise_or_x0(alpha: Tensor, sigma: Tensor) -> tuple[Coefficient, Coefficient]:
    """eps, and -x0 where alpha < NO_SIGNAL, as v is there: x0 is then defined at every noise level."""
    signal = (alpha >= NO_SIGNAL).to(alpha)
    return signal - 1.0, signal


class Objective(NamedTuple):
    """The coefficients of an objective; a value of OBJECTIVES."""

    symbol: str  # symbol of the predicted quantity
    coefficients: Coefficients  # (alpha, sigma) -> (a, b) of target = a * x0 + b * eps


OBJECTIVES: Mapping[str, Objective] = {  # --objective
    "pred_noise": Objective("eps", lambda alpha, sigma: (0.0, 1.0)),  # Ho et al. 2020, arXiv:2006.11239
    "pred_x0": Objective("x0", lambda alpha, sigma: (1.0, 0.0)),  # Li et al. 2022, arXiv:2205.14217
    "pred_v": Objective("v", lambda alpha, sigma: (-sigma, alpha)),  # Salimans & Ho 2022, arXiv:2202.00512
    # velocity of the linear path, Liu et al. 2022, arXiv:2209.03003
    "pred_flow": Objective("flow", lambda alpha, sigma: (-1.0, 1.0)),
    # of students whose teacher predicts noise (pipelines/cli/distillation_rules)
    "pred_noise_x0": Objective("eps_x0", noise_or_x0),
}

TARGETS: Mapping[str, Coefficients] = {row.symbol: row.coefficients for row in OBJECTIVES.values()}


def resolve_objective(objective: str) -> str:
    """The symbol of an objective, given by symbol or by flag name. ValueError for an unknown one."""
    symbol = OBJECTIVES[objective].symbol if objective in OBJECTIVES else objective
    if symbol not in TARGETS:
        raise ValueError(f"unknown objective {objective!r}: use one of {', '.join([*OBJECTIVES, *TARGETS])}")
    return symbol


def target(objective: str, x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """The value that the network should predict, (B, L, D)."""
    a, b = TARGETS[resolve_objective(objective)](*level)
    return a * x0 + b * eps


def to_x0(objective: str, prediction: Tensor, z_t: Tensor, level: NoiseLevel) -> Tensor:
    """Solve both equations for x0, (B, L, D). Infinite for eps where alpha = 0: x0 is undefined there."""
    objective = resolve_objective(objective)
    if objective == "x0":
        return prediction  # the general formula is 0 / 0 at sigma = 0
    a, b = TARGETS[objective](*level)
    return (b * z_t - level.sigma * prediction) / (b * level.alpha - a * level.sigma)


def to_eps(objective: str, prediction: Tensor, z_t: Tensor, level: NoiseLevel) -> Tensor:
    """Solve both equations for eps, (B, L, D). Undefined for x0 where sigma = 0."""
    objective = resolve_objective(objective)
    if objective == "eps":
        return prediction  # the general formula is 0 / 0 at alpha = 0
    a, b = TARGETS[objective](*level)
    return (level.alpha * prediction - a * z_t) / (b * level.alpha - a * level.sigma)


def to_v(objective: str, prediction: Tensor, z_t: Tensor, level: NoiseLevel) -> Tensor:
    """v = alpha * eps - sigma * x0 of the same solution, (B, L, D)."""
    objective = resolve_objective(objective)
    if objective == "v":
        return prediction
    alpha, sigma = level
    a, b = TARGETS[objective](*level)
    return ((alpha**2 + sigma**2) * prediction - (a * alpha + b * sigma) * z_t) / (b * alpha - a * sigma)

"""Annealed range of noise levels: training starts on the clean fifth of the chain and widens to all of it.

Low noise first; the whole range from half of training on. Only the draw of training times is limited: validation and
sampling use the full range, also before annealing is over. Knows steps, not losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

RESOLUTION = 1000  # T of continuous time: the range moves in thousandths

# share of the way from T / 5 to T, given progress s in [0, 1) over the first half of training
_SHARES: Mapping[str, Callable[[float, float], float]] = {
    "linear": lambda s, power: s,
    "polynomial": lambda s, power: s**power,
    "cosine": lambda s, power: 1 - 0.5 * (1 + math.cos(math.pi * s)),
}


def _normal(step: int, num_steps: int, timesteps: int, power: float) -> int:
    return timesteps


def _widening(share: Callable[[float, float], float]) -> Callable[[int, int, int, float], int]:
    def widening(step: int, num_steps: int, timesteps: int, power: float) -> int:
        half = num_steps // 2
        if step >= half:
            return timesteps
        least = timesteps // 5
        return min(timesteps, max(1, int(least + share(step / half, power) * (timesteps - least))))

    return widening


def _unsmooth(step: int, num_steps: int, timesteps: int, power: float) -> int:
    half = num_steps // 2
    if step >= half:
        return timesteps
    return max(1, (4 * step // half + 1) * timesteps // 5)  # T/5, 2T/5, 3T/5, 4T/5 on the quarters


T_SCHEDULES: Mapping[str, Callable[[int, int, int, float], int]] = {
    "normal": _normal,
    **{name: _widening(share) for name, share in _SHARES.items()},
    "unsmooth": _unsmooth,
}


def annealed_timesteps(name: str, step: int, num_steps: int, timesteps: int = RESOLUTION, power: float = 2.0) -> int:
    """T(step): training draws i from {0, ..., T(step) - 1}.

    step: optimizer steps done, of num_steps. timesteps: T of the chain. power: of the polynomial alone.
    """
    if name not in T_SCHEDULES:
        raise ValueError(f"no T schedule is called {name!r}: use one of {', '.join(T_SCHEDULES)}")
    return T_SCHEDULES[name](step, num_steps, timesteps, power)


def t_max(name: str, step: int, num_steps: int, timesteps: int | None = None, power: float = 2.0) -> float:
    """T(step) / T, in (0, 1]: the upper end of the times to draw. timesteps None is continuous time."""
    resolution = timesteps or RESOLUTION
    return annealed_timesteps(name, step, num_steps, resolution, power) / resolution

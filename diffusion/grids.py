"""Time grids: the times that a sampler walks, (N + 1,) float64 on the CPU, falling from 1 to 0.

    make_grid(name, schedule, steps, shift=None, rho=7.0) -> times
    GRIDS: name -> (schedule, steps, shift, rho) -> times

For N transitions. On a discrete chain every grid is moved to nodes, N of them, N at most T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from diffusion.schedules import Schedule, log_snr, timesteps_of

LOG_SNR_RANGE = 9.0  # nats either side of 0: sigma / alpha from 90 to 0.01, about the 80 to 0.002 of Karras et al.
LAST_TIME = 1e-3  # the earliest time before 0, of Lu et al. 2022: some schedules are not clean at 0


def uniform(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Evenly spaced times; on a chain the published sub-sequence of its nodes (discrete_grid)."""
    timesteps = timesteps_of(schedule)
    return grid(steps) if timesteps is None else discrete_grid(steps, timesteps)


def shifted(schedule: Schedule, steps: int, shift: float = 3.0, rho: float = 7.0) -> Tensor:
    """Evenly spaced times whose odds t / (1 - t) are multiplied by shift; above 1: more steps where there is noise.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 23.
    """
    u = grid(steps)
    return _on_nodes(shift * u / (1 + (shift - 1) * u), schedule)


def uniform_log_snr(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Times evenly spaced in log-SNR. Lu et al. 2022, arXiv:2206.00927, section 3.4.

    Between the ends of the schedule, but within LOG_SNR_RANGE: beyond it an estimate barely changes. The first time
    is 1 nevertheless, since sampling starts from pure noise.
    """
    return _by_log_snr(schedule, torch.lerp, steps)


def karras(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Times evenly spaced in (sigma / alpha) ** (1 / rho), within the range of uniform_log_snr.

    rho: the larger, the more steps at low noise; without bound it is uniform_log_snr.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    def between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
        ratio = torch.lerp(torch.exp(-low / (2 * rho)), torch.exp(-high / (2 * rho)), u)  # (sigma / alpha) ** (1 / rho)
        return -2 * rho * ratio.log()

    return _by_log_snr(schedule, between, steps)


def logit_normal(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Quantiles of the logit-normal distribution: logit t ~ N(log shift, 1), most steps in the middle of the range.

    Source: its density for training times, Esser et al. 2024, arXiv:2403.03206, eq. 19; here laid out for sampling.
    """
    logit = torch.special.ndtri(grid(steps)) + math.log(shift)
    return _on_nodes(torch.sigmoid(logit), schedule)


Grid = Callable[..., Tensor]  # (schedule, steps, shift, rho) -> times

GRIDS: Mapping[str, Grid] = {
    "uniform": uniform,
    "shifted": shifted,
    "log_snr": uniform_log_snr,
    "logit_normal": logit_normal,
    "karras": karras,
}

_SHIFTED = ("shifted", "logit_normal")  # those that a shift concerns


def make_grid(name: str, schedule: Schedule, steps: int, *, shift: float | None = None, rho: float = 7.0) -> Tensor:
    """A grid of GRIDS for N = steps transitions. shift: factor on the odds of t; None is that of the grid.

    ValueError, one line, for an unknown name, for a number out of range, and for more steps than a chain has.
    """
    if name not in GRIDS:
        raise ValueError(f"no time grid is called {name!r}: use one of {', '.join(GRIDS)}")
    if shift is not None and name not in _SHIFTED:
        raise ValueError(f"a grid shift has no meaning for the {name} grid: it moves {' and '.join(_SHIFTED)}")
    if shift is not None and not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"the shift of a time grid is a positive factor, not {shift}: 1 moves nothing")
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"rho of the karras grid is a positive number, not {rho}: 7 is usual")
    _check(steps, timesteps_of(schedule))
    return GRIDS[name](schedule, steps, **({} if shift is None else {"shift": shift}), rho=rho)


def grid(steps: int) -> Tensor:
    """(steps + 1,) from 1 down to 0, evenly spaced."""
    _check(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def discrete_grid(steps: int, timesteps: int) -> Tensor:
    """(steps + 1,) nodes of a chain of T timesteps, from 1 down to 0, as evenly spaced as integers allow.

    t = (i + 1) / T for the reversed i = int(linspace(-1, T - 1, steps + 1)).
    Source: Song et al. 2021, arXiv:2010.02502, appendix D.3, their linear sub-sequence.
    ValueError where steps exceed T: a chain has no node between its nodes.
    """
    _check(steps, timesteps)
    # in integers: k T / steps + (i = -1 at k = 0) needs no rounding, where linspace in float32 may miss a node by one
    nodes = torch.tensor([k * timesteps // steps for k in range(steps, -1, -1)], dtype=torch.float64)
    return nodes / timesteps


def time_at(schedule: Schedule, levels: Tensor) -> Tensor:
    """Times at which a schedule has given log-SNRs, by bisection; the nearest end where it has none. float64."""
    levels = levels.double()
    low, high = torch.zeros_like(levels), torch.ones_like(levels)
    for _ in range(60):  # 2 ** -60 of the range: beyond what float64 can tell
        middle = (low + high) / 2
        cleaner = log_snr(schedule(middle)) > levels
        low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
    return (low + high) / 2


def _by_log_snr(schedule: Schedule, between: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> Tensor:
    """Times at log-SNRs between(low, high, u), u from 0 to 1: N of them, the first moved to 1, and 0 after the last."""
    first = max(LAST_TIME, 1 / (timesteps_of(schedule) or math.inf))  # no chain has anything below its first node
    noisy, clean = (log_snr(schedule(torch.tensor(t, dtype=torch.float64))) for t in (1.0, first))
    high = clean.clamp(max=LOG_SNR_RANGE)
    low = torch.maximum(noisy, (high - LOG_SNR_RANGE).clamp(max=-LOG_SNR_RANGE))
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    times = time_at(schedule, between(low, high, u))
    times[0] = 1
    # near 1 a schedule may be so steep that in float32, where the network lives, two times would be one
    gaps = min(2**-22, LAST_TIME / (2 * steps)) * torch.arange(steps, dtype=torch.float64)
    times = (times + gaps).cummin(0).values - gaps
    return _on_nodes(torch.cat([times, torch.zeros(1, dtype=torch.float64)]), schedule)


def _on_nodes(times: Tensor, schedule: Schedule) -> Tensor:
    """The times themselves in continuous time; on a chain the nearest nodes, moved apart where two would be one."""
    timesteps = timesteps_of(schedule)
    if timesteps is None:
        return times
    steps, last = len(times) - 1, timesteps + 1
    nodes = []
    for k, t in enumerate(times.tolist()):
        last = min(last - 1, max(round(t * timesteps), steps - k))  # enough nodes are left for those that follow
        nodes.append(last)
    return torch.tensor(nodes, dtype=torch.float64) / timesteps


def _check(steps: int, timesteps: int | None = None) -> None:
    if steps < 1:
        raise ValueError(f"{steps} sampling steps lead nowhere: ask for 1 or more")
    if timesteps is not None and steps > timesteps:
        raise ValueError(f"{steps} sampling steps do not fit into a chain of {timesteps}: ask for {timesteps} or fewer")

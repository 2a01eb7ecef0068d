"""Timesteps of samplers: (N + 1,) float64 on the CPU, falling from 1 to 0, for N steps.

    make_grid(name, schedule, steps, shift=None, rho=7.0) -> times       --time_grid
    TIMESTEP_GRIDS: name -> (schedule, steps, shift, rho) -> times
    parse_respacing(spec, T) -> step indices, falling                    parse_respacing("ddim50", 1000)
    respaced_timesteps(T, indices) -> times (n + 1,)                     --timestep_respacing

On a discrete chain the first N times of a grid are N different nodes of the chain, so N is at most T.

Respacing selects a subset of a chain's steps as a list of times, and builds no new chain. A sampler takes steps of any
length: it computes the beta of a step from the alpha_bar of both ends, and both posterior variances from beta. The
network receives the times of the chain on which it was trained. The result equals the chain of betas
1 - alpha_bar_i / alpha_bar_j of Nichol & Dhariwal 2021, arXiv:2102.09672, section 4, with their map of indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from diffusion.schedules import Schedule, log_snr, num_timesteps

LOG_SNR_RANGE = 9.0  # nats either side of 0: sigma / alpha from 90 to 0.01, about the 80 to 0.002 of Karras et al.
LAST_TIME = 1e-3  # the last time before 0, as in Lu et al. 2022: some schedules are not clean at 0


def uniform(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Evenly spaced times; on a chain the published sub-sequence of its nodes (chain_grid)."""
    timesteps = num_timesteps(schedule)
    return linear_grid(steps) if timesteps is None else chain_grid(steps, timesteps)


def shifted(schedule: Schedule, steps: int, shift: float = 3.0, rho: float = 7.0) -> Tensor:
    """Evenly spaced times whose odds t / (1 - t) are multiplied by shift; above 1: more steps where there is noise.

    Source: Esser et al. 2024, arXiv:2403.03206, eq. 23.
    """
    u = linear_grid(steps)
    return snap_to_chain(shift * u / (1 + (shift - 1) * u), schedule)


def uniform_log_snr(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Times evenly spaced in log-SNR. Lu et al. 2022, arXiv:2206.00927, section 3.4.

    The range is that of the schedule, within LOG_SNR_RANGE: estimates barely change beyond it. The first time is
    always 1, since sampling starts from pure noise.
    """
    return _by_log_snr(schedule, torch.lerp, steps)


def karras(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Times evenly spaced in (sigma / alpha) ** (1 / rho), within the range of uniform_log_snr.

    rho: a larger value has more steps at low noise; the limit is uniform_log_snr.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    def between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
        ratio = torch.lerp(torch.exp(-low / (2 * rho)), torch.exp(-high / (2 * rho)), u)  # (sigma / alpha) ** (1 / rho)
        return -2 * rho * ratio.log()

    return _by_log_snr(schedule, between, steps)


def logit_normal(schedule: Schedule, steps: int, shift: float = 1.0, rho: float = 7.0) -> Tensor:
    """Quantiles of the logit-normal distribution: logit t ~ N(log shift, 1), most steps in the middle of the range.

    Source: its density for training times, Esser et al. 2024, arXiv:2403.03206, eq. 19; here used for sampling.
    """
    logit = torch.special.ndtri(linear_grid(steps)) + math.log(shift)
    return snap_to_chain(torch.sigmoid(logit), schedule)


Grid = Callable[..., Tensor]  # (schedule, steps, shift, rho) -> times

TIMESTEP_GRIDS: Mapping[str, Grid] = {
    "uniform": uniform,
    "shifted": shifted,
    "log_snr": uniform_log_snr,
    "logit_normal": logit_normal,
    "karras": karras,
}

_SHIFTED = ("shifted", "logit_normal")  # grids with a shift


def make_grid(name: str, schedule: Schedule, steps: int, *, shift: float | None = None, rho: float = 7.0) -> Tensor:
    """A grid of TIMESTEP_GRIDS for N = steps transitions. shift: factor on the odds of t; None: that of the grid.

    ValueError, one line, for an unknown name, for a number out of range, and for more steps than a chain has.
    """
    if name not in TIMESTEP_GRIDS:
        raise ValueError(f"unknown time grid {name!r}: use one of {', '.join(TIMESTEP_GRIDS)}")
    if shift is not None and name not in _SHIFTED:
        raise ValueError(f"--grid_shift has no effect on the {name} grid: it is for {' and '.join(_SHIFTED)}")
    if shift is not None and not (shift > 0 and math.isfinite(shift)):
        raise ValueError(f"the grid shift is {shift}: use a positive number; 1 is no shift")
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"rho of the karras grid is {rho}: use a positive number; 7 is usual")
    _check(steps, num_timesteps(schedule))
    return TIMESTEP_GRIDS[name](schedule, steps, **({} if shift is None else {"shift": shift}), rho=rho)


def linear_grid(steps: int) -> Tensor:
    """(steps + 1,) from 1 down to 0, evenly spaced."""
    _check(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def chain_grid(steps: int, timesteps: int) -> Tensor:
    """(steps + 1,) nodes of a chain of T timesteps, from 1 down to 0, as evenly spaced as integers allow.

    t = (i + 1) / T for the reversed i = int(linspace(-1, T - 1, steps + 1)).
    Source: Song et al. 2021, arXiv:2010.02502, appendix D.3, their linear sub-sequence.
    ValueError if steps exceed T: a chain has no node between its nodes.
    """
    _check(steps, timesteps)
    # in integers, without rounding; linspace in float32 may be off by one node
    nodes = torch.tensor([k * timesteps // steps for k in range(steps, -1, -1)], dtype=torch.float64)
    return nodes / timesteps


def invert_log_snr(schedule: Schedule, levels: Tensor) -> Tensor:
    """Times at which a schedule has given log-SNRs, by bisection; the nearest end where it has none. float64."""
    levels = levels.double()
    low, high = torch.zeros_like(levels), torch.ones_like(levels)
    for _ in range(60):  # 2 ** -60 of the range is below the precision of float64
        middle = (low + high) / 2
        cleaner = log_snr(schedule(middle)) > levels
        low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
    return (low + high) / 2


def training_time(train_schedule: Schedule, schedule: Schedule, t: Tensor) -> Tensor:
    """The time at which training had the noise that another schedule has at t, shaped like t: equal log-SNR.

    t itself where both are the same schedule. The nearest end where training has no such noise level.
    """
    if schedule == train_schedule:
        return t
    low = torch.zeros_like(t) if t.device.type == "mps" else torch.zeros_like(t, dtype=torch.float64)
    level = log_snr(schedule(t.to(low.dtype)))[..., None]
    # 256 sections at once, four times: bisection would take a hundred times as many kernels, at each sampling step
    width, inner = 1.0, torch.arange(1, 256, device=t.device, dtype=low.dtype) / 256
    for _ in range(4):
        cleaner = log_snr(train_schedule(low[..., None] + width * inner)) > level
        width /= 256
        low = low + width * cleaner.sum(-1)
    return (low + width / 2).to(t.dtype)


def _by_log_snr(schedule: Schedule, between: Callable[[Tensor, Tensor, Tensor], Tensor], steps: int) -> Tensor:
    """Times at log-SNRs between(low, high, u), u from 0 to 1: N of them, the first moved to 1, and 0 after the last."""
    first = max(LAST_TIME, 1 / (num_timesteps(schedule) or math.inf))  # a chain has no noise level below its first node
    noisy, clean = (log_snr(schedule(torch.tensor(t, dtype=torch.float64))) for t in (1.0, first))
    high = clean.clamp(max=LOG_SNR_RANGE)
    low = torch.maximum(noisy, (high - LOG_SNR_RANGE).clamp(max=-LOG_SNR_RANGE))
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    times = invert_log_snr(schedule, between(low, high, u))
    times[0] = 1
    # near 1 a schedule may be so steep that two times would be equal in float32, the precision of the network
    gaps = min(2**-22, LAST_TIME / (2 * steps)) * torch.arange(steps, dtype=torch.float64)
    times = (times + gaps).cummin(0).values - gaps
    return snap_to_chain(torch.cat([times, torch.zeros(1, dtype=torch.float64)]), schedule)


def snap_to_chain(times: Tensor, schedule: Schedule) -> Tensor:
    """Round times to the nodes of a chain, and move equal ones apart; in continuous time return them unchanged."""
    timesteps = num_timesteps(schedule)
    if timesteps is None:
        return times
    steps, last = len(times) - 1, timesteps + 1
    nodes = []
    for k, t in enumerate(times.tolist()):
        last = min(last - 1, max(round(t * timesteps), steps - k))  # leaves enough nodes for the following times
        nodes.append(last)
    return torch.tensor(nodes, dtype=torch.float64) / timesteps


def _check(steps: int, timesteps: int | None = None) -> None:
    if steps < 1:
        raise ValueError(f"the number of sampling steps is {steps}: use 1 or more")
    if timesteps is not None and steps > timesteps:
        raise ValueError(f"{steps} sampling steps are more than the chain of {timesteps} has: use {timesteps} or fewer")


def parse_respacing(spec: str | Sequence[int], timesteps: int) -> list[int]:
    """Indices of the selected steps of a chain, falling, in 0, ..., T - 1.

    spec: "ddimN": N steps from 0 with an integer stride. Song et al. 2021, arXiv:2010.02502.
        "N1,N2,...": the chain in as many equal sections (the first ones a step longer), N_k steps of section k, spread
        evenly from its first to its last. "N" alone spreads N steps over the whole chain.
        "at:I1,I2,...", or a sequence of numbers: these steps.
    ValueError, one line, for any other specification, and for steps that the chain does not have.
    """
    if not isinstance(spec, str):
        return _explicit(list(spec), timesteps)
    if spec.startswith("ddim"):
        return _strided(_numbers(spec.removeprefix("ddim"), spec), timesteps)
    if spec.startswith("at:"):
        return _explicit(_numbers(spec.removeprefix("at:"), spec), timesteps)
    return _sections(_numbers(spec, spec), timesteps)


def respaced_timesteps(timesteps: int, indices: Sequence[int]) -> Tensor:
    """(n + 1,) float64: times (i + 1) / T of the selected steps, falling, then 0.

    If the last step of the chain is not selected, sampling starts below t = 1, still from pure noise, as published.
    """
    steps = sorted(set(indices), reverse=True)
    if not steps:
        raise ValueError("the respacing selects no step of the chain: select 1 or more")
    return torch.tensor([*(i + 1 for i in steps), 0], dtype=torch.float64) / timesteps


def _numbers(text: str, spec: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"the respacing {spec!r} is none of ddimN, N1,N2,... and at:I1,I2,...") from None


def _explicit(steps: list[int], timesteps: int) -> list[int]:
    wrong = [i for i in steps if not 0 <= i < timesteps]
    if wrong or not steps:
        reason = f"step {wrong[0]}" if wrong else "no step"
        raise ValueError(f"the respacing selects {reason}, but the chain has the steps 0 to {timesteps - 1}")
    return sorted(set(steps), reverse=True)


def _strided(numbers: list[int], timesteps: int) -> list[int]:
    possible = {len(range(0, timesteps, stride)): stride for stride in range(timesteps, 0, -1)}
    (n, *more) = numbers
    if more or n not in possible:
        nearest = sorted(possible, key=lambda count: abs(count - n))[:2]
        raise ValueError(
            f"no integer stride gives ddim{','.join(map(str, numbers))} of {timesteps} steps: "
            f"use ddim{' or ddim'.join(map(str, sorted(nearest)))}, or the number alone"
        )
    return list(range(0, timesteps, possible[n]))[::-1]


def _sections(counts: list[int], timesteps: int) -> list[int]:
    size, longer = divmod(timesteps, len(counts))
    selected: list[int] = []
    start = 0
    for k, count in enumerate(counts):
        length = size + (k < longer)
        if not 1 <= count <= length:
            raise ValueError(f"section {k + 1} of the chain has {length} steps, but the respacing selects {count}")
        stride = (length - 1) / (count - 1) if count > 1 else 0
        selected += [start + round(j * stride) for j in range(count)]
        start += length
    return sorted(set(selected), reverse=True)

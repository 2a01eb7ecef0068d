"""From a network to a function that estimates x0, which is all that samplers ask for.

    network: (z (B, L, D), time (B,), x0_prev (B, L, D) or None) -> prediction (B, L, D)
    Denoise: (z (B, L, D), t (B,),    x0_prev (B, L, D) or None) -> x0_hat (B, L, D)

Mask and condition are bound inside the network.
Wrappers turn one Denoise into another, in this order, inside out: make_denoise, guided, projected, anchored. So what
one sampler can do, all can. x0_prev is the last estimate that the outermost wrapper returned.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from diffusion.objectives import canonical, to_x0
from diffusion.schedules import Schedule, level_at, timesteps_of

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]

TIME_INPUTS = ("alpha_bar", "index")


def time_value(schedule: Schedule, t: Tensor, kind: str = "alpha_bar", timesteps: int | None = None) -> Tensor:
    """What the network is told of time, (B,), in [0, 1]; it multiplies by 1000 itself.

    alpha_bar: alpha_bar(t), so that a network trained under one schedule can be sampled under another.
    index: of a chain of T steps i / T = t - 1 / T, so that with T = 1000 the network sees the integers 0 to 999 of
        Ho et al. 2020, and another T is stretched over the same range; in continuous time t itself.
    timesteps: T of the chain trained on, where the schedule is not that chain.
    """
    if kind == "alpha_bar":
        return schedule(t).alpha ** 2
    if kind == "index":
        timesteps = timesteps or timesteps_of(schedule)
        return t if timesteps is None else (t - 1 / timesteps).clamp(min=0)
    raise ValueError(f"no time input is called {kind!r}: use one of {', '.join(TIME_INPUTS)}")


def make_denoise(
    network: Network, objective: str, schedule: Schedule, time_input: str = "alpha_bar", timesteps: int | None = None
) -> Denoise:
    """The network as an estimate of x0, whatever it was trained to predict."""
    objective = canonical(objective)

    def denoise(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        time = time_value(schedule, t, time_input, timesteps).to(z.dtype)  # (B,)
        prediction = network(z, time, x0_prev).to(z.dtype)  # autocast may have lowered it
        return to_x0(objective, prediction, z, level_at(schedule, t, z))

    return denoise


def projected(denoise: Denoise, project: Callable[[Tensor], Tensor]) -> Denoise:
    """Every estimate brought back to where data lies: norm sqrt(D), the nearest embedding, ..."""

    def denoise_projected(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        return project(denoise(z, t, x0_prev))

    return denoise_projected

"""From a network to a function that estimates x0, the only thing that samplers need.

    network: (z (B, L, D), time (B,), x0_prev (B, L, D) or None) -> prediction (B, L, D)
    Denoise: (z (B, L, D), t (B,),    x0_prev (B, L, D) or None) -> x0_hat (B, L, D)

Mask and condition are bound inside the network. A sampler passes one time for all texts, (1,), so that the network
embeds the time only once.
Wrappers turn one Denoise into another, in this order, inside out:

    make_denoise                 network and to_x0
    classifier_free_guided       classifier-free guidance (diffusion/guidance)
    classifier_guided            the gradient of a classifier (diffusion/classifier_guidance)
    project_x0, clamp_x0         the nearest point of the data space, always or at some times
    with_known_positions         positions that stay clean (diffusion/guidance)

So every wrapper works with every sampler. x0_prev is the last estimate that the outermost wrapper returned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.learned_variance import LearnedVariance, split_variance
from diffusion.objectives import resolve_objective, to_x0
from diffusion.schedules import Schedule, broadcast_level, num_timesteps
from diffusion.timesteps import training_time

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]

TIME_INPUT_KINDS = ("alpha_bar", "index")


def get_time_input(
    schedule: Schedule,
    t: Tensor,
    kind: str = "alpha_bar",
    timesteps: int | None = None,
    train_schedule: Schedule | None = None,
) -> Tensor:
    """The time input of the network, shaped like t, in [0, 1]; the network multiplies it by 1000.

    alpha_bar: alpha_bar(t), so that a network trained under one schedule can be sampled under another.
    index: i / T = t - 1 / T for a chain of T steps, so that with T = 1000 the network receives the integers 0 to 999 of
        Ho et al. 2020, and another T is stretched over the same range; in continuous time t itself.
    timesteps: T of the chain trained on, where the schedule is not that chain.
    train_schedule: the schedule of training, where `schedule` may be another; None: the same. Another schedule or scale
        changes what t means, so the index is then that of the training time of equal log-SNR.
    """
    if kind == "alpha_bar":
        return schedule(t).alpha ** 2
    if kind == "index":
        if train_schedule is not None:
            t, schedule = training_time(train_schedule, schedule, t), train_schedule
        timesteps = timesteps or num_timesteps(schedule)
        return t if timesteps is None else (t - 1 / timesteps).clamp(min=0)
    raise ValueError(f"unknown time input {kind!r}: use one of {', '.join(TIME_INPUT_KINDS)}")


def make_denoise(
    network: Network,
    objective: str,
    schedule: Schedule,
    time_input: str = "alpha_bar",
    timesteps: int | None = None,
    *,
    train_schedule: Schedule | None = None,
    shift: Tensor | None = None,
    variance: LearnedVariance | None = None,
) -> Denoise:
    """The network as an estimate of x0, for any objective, in float32 at least.

    At t = 1 it divides by alpha, 5e-4 or less: in float16 the estimate would be infinite. The network receives z, time
    and x0_prev in the dtype of z.
    timesteps, train_schedule: see get_time_input.
    shift: (B, L, D), the mean of the noise where there is an absorbing state (diffusion/absorbing); None: zero.
    variance: receives the variance that the network returns beside its prediction; None: it is dropped.
    """
    objective = resolve_objective(objective)

    def denoise(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        time = get_time_input(schedule, t, time_input, timesteps, train_schedule).to(z.dtype)
        wide = torch.promote_types(z.dtype, torch.float32)
        x0_prev = None if x0_prev is None else saturate(x0_prev, z.dtype)
        output = network(z, time, x0_prev).to(wide)  # under autocast the output may be in half precision
        prediction, v = split_variance(output, z.shape[-1])
        if variance is not None:
            variance.v = v
        z = z.to(wide)
        level = broadcast_level(schedule, t, z)
        if shift is not None:
            z = z - (1 - level.alpha) * shift.to(z)  # leaves alpha x0 + sigma eps
        return to_x0(objective, prediction, z, level)

    return denoise


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype; what is too large for it becomes its largest number instead of infinity."""
    if x.dtype == dtype or dtype not in (torch.float16, torch.bfloat16):
        return x.to(dtype)
    return x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)


def project_x0(denoise: Denoise, project: Callable[[Tensor], Tensor]) -> Denoise:
    """Project every estimate onto the data space: norm sqrt(D), the nearest embedding, ..."""

    def denoise_projected(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        return project(denoise(z, t, x0_prev))

    return denoise_projected


def clamp_x0(
    denoise: Denoise, project: Callable[[Tensor], Tensor], *, from_t: float = 1.0, until_t: float = 0.0
) -> Denoise:
    """Project estimates at the times until_t <= t <= from_t: the clamping trick of token embeddings.

    from_t: 1 projects from the first step on, 0.3 only in the last third, where estimates are close to
    tokens. until_t: estimates below it are not projected. The chain's step i is t = (i + 1) / T.
    Source: Li et al. 2022, arXiv:2205.14217, section 4.2; a chosen range, Gong et al. 2023, their code.
    """
    if until_t <= 0 and from_t >= 1:
        return project_x0(denoise, project)

    def denoise_clamped(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        x0 = denoise(z, t, x0_prev)
        # tolerance: t = 0.3 in float32 is not 0.3. torch.where, so that the host does not wait for the device
        in_range = ((t <= from_t + 5e-7) & (t >= until_t - 5e-7)).view(-1, *(1,) * (x0.dim() - 1))
        return torch.where(in_range, project(x0), x0)

    return denoise_clamped

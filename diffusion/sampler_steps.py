"""The part that all samplers share: their signature, the steps of a grid, the end of a step, and step hooks.

    (denoise, schedule, timesteps, z, noise=None, step_hook=None) -> z

denoise: (z (B, L, D), t (1,), x0_prev) -> x0_hat (B, L, D). Conditions, guidance, projection and masks are inside it.
    x0_prev is the previous estimate, None at the first step.
schedule: t -> NoiseLevel; it may differ from the schedule of training.
timesteps: (N + 1,), falling (diffusion/timesteps). Samplers compute levels on the CPU in float64, so that no step makes
    the host wait for the device.
z: (B, L, D), drawn at timesteps[0]; its dtype and device are those of the result.
noise: (step, like) -> standard normal like `like`; the only source of randomness, called only where a step has variance
    (diffusion/noise). None: torch's global generator.
step_hook: (z, x0_hat, mean, std, t, s, step) -> z, called after every step, whose z is mean + std * noise.
    mean (B, L, D); std, t, s: 0-dim on the CPU; a learned std is (B, L, D). compose_hooks joins several:

    sampler(..., step_hook=compose_hooks(rejection.step_hook, remask_hook(...), classifier_guidance_hook(...)))

A step to t = 0 returns x0_hat: t = 0 is data by definition, although continuous schedules have a little noise there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.noise_levels import step_variance
from diffusion.schedules import NoiseLevel, Schedule, num_timesteps

Noise = Callable[[int, Tensor], Tensor]
StepHook = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Sampler(Protocol):
    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        timesteps: Tensor,
        z: Tensor,
        noise: Noise | None = None,
        step_hook: StepHook | None = None,
    ) -> Tensor: ...


class SamplerStep(NamedTuple):
    """One step, from t down to s. 0-dim tensors on the CPU multiply tensors of any device without a copy."""

    i: int  # index of this step, from 0
    t: Tensor
    s: Tensor
    level_t: NoiseLevel  # noise level at t
    level_s: NoiseLevel  # noise level at s
    t_batch: Tensor  # (1,), t for the denoiser, on the device of z


def iterate_steps(schedule: Schedule, timesteps: Tensor, z: Tensor) -> Iterator[SamplerStep]:
    """The steps of a grid. ValueError for timesteps that do not fall."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    # rounded to the precision of the denoiser's input, so that both use the same level; then exact
    timesteps = timesteps.detach().to("cpu", dtype).double()
    if timesteps.dim() != 1 or len(timesteps) < 2 or bool((timesteps.diff() >= 0).any()):
        raise ValueError("timesteps must be two or more falling numbers, shared by the whole batch")
    for i, (t, s) in enumerate(pairwise(timesteps)):
        t_batch = torch.full((1,), float(t), dtype=dtype, device=z.device)
        yield SamplerStep(i, t, s, schedule(t), schedule(s), t_batch)


def renoise(
    step: SamplerStep, z: Tensor, schedule: Schedule, gamma: float, noise: Noise | None
) -> tuple[SamplerStep, Tensor]:
    """The step from a noisier time, and z with the noise of that time: t' with 1 - t' = (1 - gamma (t - s)) (1 - t).

    So before each step sampling goes back by the fraction gamma of its length, times the share of the way that is done,
    and errors of earlier steps drown in fresh noise. Nothing happens at t = 1, and with gamma 0. On a chain t' is the
    nearest node.
    Source: Hu et al. 2026, arXiv:2605.10938 (ELF), their gamma, published 1.5 at 32 steps; the churn of Karras et al.
    2022, arXiv:2206.00364, Algorithm 2. Differs from the former: the noise is that of the process between both times.
    """
    if gamma == 0:
        return step, z
    back = 1 - (1 - gamma * (step.t - step.s)).clamp(min=0) * (1 - step.t)
    if (timesteps := num_timesteps(schedule)) is not None:
        back = (back * timesteps).round() / timesteps
    back = back.to(step.t_batch.dtype).double()  # as in iterate_steps
    if not back > step.t:
        return step, z
    level = schedule(back)
    std = step_variance(level, step.level_t).sqrt()
    eps = torch.randn_like(z) if noise is None else noise(step.i, z)
    z = level.alpha / step.level_t.alpha * z + std * eps
    return step._replace(t=back, level_t=level, t_batch=torch.full_like(step.t_batch, float(back))), z


def finish_step(
    step: SamplerStep, x0: Tensor, mean: Tensor, std: Tensor, noise: Noise | None, step_hook: StepHook | None
) -> Tensor:
    """The z after a step: mean + std * noise, or x0 at t = 0; then the step hook. std: 0-dim, or shaped like z."""
    if step.s == 0:
        mean, std = x0, torch.zeros((), dtype=std.dtype)
    z = mean
    if std.dim() > 0 or std > 0:
        z = mean + std * (torch.randn_like(mean) if noise is None else noise(step.i, mean))
    return z if step_hook is None else step_hook(z, x0, mean, std, step.t, step.s, step.i)


def compose_hooks(*hooks: StepHook | None) -> StepHook | None:
    """Several step hooks as one, in order: each receives the z of the one before, and the same x0_hat, mean and std.

    None among them is left out; None alone gives None.
    """
    present = [hook for hook in hooks if hook is not None]
    if not present:
        return None

    def step_hook(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        for hook in present:
            z = hook(z, x0, mean, std, t, s, step)
        return z

    return step_hook

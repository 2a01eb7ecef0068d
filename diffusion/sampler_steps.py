"""What all samplers share: their signature, the steps of a grid, and how a step ends.

    (denoise, schedule, timesteps, z, noise=None, correct=None) -> z

denoise: (z (B, L, D), t (1,), x0_prev) -> x0_hat (B, L, D). Conditions, guidance, projection, masks live inside it.
    x0_prev is the estimate before, None at the first.
schedule: t -> NoiseLevel; it may differ from the one trained with.
timesteps: (N + 1,), falling (diffusion/timesteps). They are walked on the CPU in float64, so that no step makes the host
    wait for the device.
z: (B, L, D), drawn at timesteps[0]; its dtype and device are those of the result.
noise: (step, like) -> standard normal like `like`; the only source of randomness, asked only where a transition has
    variance (diffusion/noise). None draws from torch's global generator.
correct: (z, x0_hat, mean, std, t, s, step) -> z, called after every transition, whose z is mean + std * noise.
    mean (B, L, D); std, t, s: 0-dim on the CPU. diffusion/sampler_steps joins several.

A transition to t = 0 returns x0_hat itself: t = 0 is data by definition, though the continuous schedules hold a trace
of noise there.

Several corrections of a sampler's state, as one.

    sampler(..., correct=in_turn(stability.correct, remasking(...), control(...), watch))

A correction is (z, x0_hat, mean, std, t, s, step) -> z, called after every transition (diffusion/sampler_steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.schedules import NoiseLevel, Schedule

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
    """One step, from noise level t down to s. 0-dim tensors on the CPU multiply those of any device without a copy."""

    step: int
    t: Tensor
    s: Tensor
    now: NoiseLevel  # at t
    then: NoiseLevel  # at s
    times: Tensor  # (1,), t for the denoiser, of all texts, on the device of z


def iterate_steps(schedule: Schedule, timesteps: Tensor, z: Tensor) -> Iterator[SamplerStep]:
    """The steps of a grid. ValueError for a grid that does not fall."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    # rounded to what the denoiser will see, so that both sides speak of the same level; then exact
    timesteps = timesteps.detach().to("cpu", dtype).double()
    if timesteps.dim() != 1 or len(timesteps) < 2 or bool((timesteps.diff() >= 0).any()):
        raise ValueError("timesteps must be two or more falling numbers, one list for the whole batch")
    for step, (t, s) in enumerate(pairwise(timesteps)):
        times = torch.full((1,), float(t), dtype=dtype, device=z.device)
        yield SamplerStep(step, t, s, schedule(t), schedule(s), times)


def finish_step(
    at: SamplerStep, x0: Tensor, mean: Tensor, std: Tensor, noise: Noise | None, step_hook: StepHook | None
) -> Tensor:
    """The z that a transition ends in: mean + std * noise, or x0 where it reaches t = 0; then corrected."""
    if at.s == 0:
        mean, std = x0, torch.zeros_like(std)
    z = mean
    if std > 0:
        z = mean + std * (torch.randn_like(mean) if noise is None else noise(at.step, mean))
    return z if step_hook is None else step_hook(z, x0, mean, std, at.t, at.s, at.step)


def step_variance(now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Variance of z_t given z_s, s < t: beta_t of a chain. Kingma et al. 2021, arXiv:2107.00630, eq. 22."""
    variance = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return variance.clamp(min=0)  # two times whose log-SNR was clamped share a level; rounding must not go below


def compose_hooks(*corrections: StepHook | None) -> StepHook | None:
    """Each gets the z of the one before; all see the same estimate, mean and std. None among them is left out."""
    there = [step_hook for step_hook in corrections if step_hook is not None]
    if not there:
        return None

    def step_hook(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        for one in there:
            z = one(z, x0, mean, std, t, s, step)
        return z

    return step_hook

"""Deterministic DDIM as a map between noise levels, and two inverses of it: for distillation, and from data to noise.

    ddim_step(z, x0, level_t, level_s)              -> z at level_s
    ddim_target_x0(z, z_s, level_t, level_s)        -> the x0 whose DDIM step ends at z_s
    eps_from_x0(z, x0, level)                       -> eps
    invert_ddim(denoise, schedule, timesteps, x0)   -> z at timesteps[0]; sample_ddim returns x0 from it

Progressive distillation: one step of a student's sampler learns the result of several steps of its teacher. The student
predicts the x0 with which a DDIM step to its next time gives the teacher's z at that time; at its last step it predicts
x0 itself. Its predictions are therefore valid only for DDIM and for its own K times; only the last one is projected.
Source: Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2. A guided teacher: Meng et al. 2023, arXiv:2210.03142.
Differs from them: the number of steps is cut to K at once instead of halved repeatedly, and the student may train from
states that its own steps reach.

Inversion is used for editing and interpolation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.noise_levels import power
from diffusion.sampler_steps import iterate_steps
from diffusion.schedules import NoiseLevel, Schedule


def ddim_step(z: Tensor, x0: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """Deterministic DDIM from one noise level to a lower one, (B, L, D); Song et al. 2021, arXiv:2010.02502, eq. 12."""
    return (level_s.alpha * x0 + level_s.sigma * (z - level_t.alpha * x0) / level_t.sigma).to(z.dtype)


def ddim_target_x0(z: Tensor, z_s: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """The x0 (B, L, D) with ddim_step(z, x0, level_t, level_s) = z_s. level_s has less noise than level_t."""
    ratio = level_s.sigma / level_t.sigma
    return ((z_s - ratio * z) / (level_s.alpha - ratio * level_t.alpha)).to(z.dtype)


def eps_from_x0(z: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """The eps (B, L, D) with z = alpha x0 + sigma eps."""
    return ((z - level.alpha * x0) / level.sigma).to(z.dtype)


@torch.no_grad()
def invert_ddim(denoise: Denoise, schedule: Schedule, timesteps: Tensor, x0: Tensor, iterations: int = 5) -> Tensor:
    """The z (B, L, D) at timesteps[0] that deterministic DDIM takes to x0 along the same grid.

    Each step F of DDIM, from z_t to z_s, is solved for z_t by

        z_t <- z_t + (z_s - F(z_t)) / slope,    slope = (alpha_s alpha_t + sigma_s sigma_t) / (alpha_t^2 + sigma_t^2)

    which is the slope of F where the data is N(0, I), and nearly so for normalized latents: each iteration then gains a
    digit or more. The initial guess continues in the direction of the previous step: alone, it is the usual inversion.
    Source: Song et al. 2021, arXiv:2010.02502, section 5.4; solved exactly, as in Pan et al. 2023, arXiv:2309.04907.

    timesteps: (N + 1,), falling, as for the sampler. x0: (B, L, D), data at timesteps[-1]. N * iterations calls of
    denoise. A network with self-conditioning receives the estimate of the less noisy step, as that of the noisier
    one is not yet known: its round trip is close, not exact. If the std of the data is much smaller than the noise of
    the last step, or x0 is projected, many z lead to one x0, and the iteration converges slowly or not at all: omit the
    projection and end the grid with short steps.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}: use 1 or more")
    z = x0
    eps: Tensor | None = None
    x0_prev: Tensor | None = None
    for step in reversed(list(iterate_steps(schedule, timesteps, x0))):
        level_t, level_s = step.level_t, step.level_s
        # t = 0 is data: the last step of the sampler returns x0_hat
        alpha, sigma = (torch.ones(()), torch.zeros(())) if step.s == 0 else (level_s.alpha, level_s.sigma)
        slope = (alpha * level_t.alpha + sigma * level_t.sigma) / power(level_t)
        z_s = z
        z = z_s / slope if x0_prev is None or eps is None else level_t.alpha * x0_prev + level_t.sigma * eps
        for _ in range(iterations):
            x0_prev = denoise(z, step.t_batch, x0_prev)
            eps = (z - level_t.alpha * x0_prev) / level_t.sigma
            z = z + (z_s - alpha * x0_prev - sigma * eps) / slope
    return z

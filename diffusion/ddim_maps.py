"""Progressive distillation: one step of a student's sampler is taught what several of a teacher's come to.

    jump(z, x0, now, then)          -> z where a step of DDIM ends
    jump_target(z, z_then, now, then) -> the x0 whose step of DDIM ends at z_then

A student of K steps estimates no x0 of the data but for its last step: it says what leads to the teacher's z at the
next of its own K times. So its estimates are right for that grid and DDIM alone, and are projected to where data lies
at the last step only.
Source: Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2. A guided teacher: Meng et al. 2023, arXiv:2210.03142.
Differs from them: the number of steps is not halved again and again, but cut to K at once, and the student may learn
from where its own steps have led it.

From data to the noise that DDIM would make it of: for editing, interpolation, and to see what a model holds likely.

invert_ddim(denoise, schedule, timesteps, x0, iterations=5) -> z at timesteps[0]
sample_ddim(denoise, schedule, timesteps, z)                 -> x0 again
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.sampler_steps import iterate_steps
from diffusion.schedules import NoiseLevel, Schedule


def ddim_step(z: Tensor, x0: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Deterministic DDIM from one noise level to a lower one, (B, L, D); Song et al. 2021, arXiv:2010.02502, eq. 12."""
    return (then.alpha * x0 + then.sigma * (z - now.alpha * x0) / now.sigma).to(z.dtype)


def ddim_target_x0(z: Tensor, z_then: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """The x0 (B, L, D) with jump(z, x0, now, then) = z_then. `then` is less noisy than `now`."""
    ratio = then.sigma / now.sigma
    return ((z_then - ratio * z) / (then.alpha - ratio * now.alpha)).to(z.dtype)


def eps_from_x0(z: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """The eps (B, L, D) that makes z of x0."""
    return ((z - level.alpha * x0) / level.sigma).to(z.dtype)


@torch.no_grad()
def invert_ddim(denoise: Denoise, schedule: Schedule, timesteps: Tensor, x0: Tensor, iterations: int = 5) -> Tensor:
    """The z (B, L, D) at timesteps[0] that deterministic DDIM takes to x0 along the same grid.

    Each step F of DDIM, from z_t to z_s, is solved for z_t by

        z_t <- z_t + (z_s - F(z_t)) / slope,    slope = alpha_s alpha_t + sigma_s sigma_t

    which is F's own slope where the data is N(0, I), and near it for normalised latents: there each iteration gains a
    digit or more. The first guess goes on in the direction of the step before, which alone is the usual inversion.
    Source: Song et al. 2021, arXiv:2010.02502, section 5.4; solved exactly, as in Pan et al. 2023, arXiv:2309.04907.

    timesteps: (N + 1,), falling, as for the sampler. x0: (B, L, D), data at timesteps[-1]. N * iterations calls of
    denoise. A network with self-conditioning is shown the estimate of the less noisy step, since that of the noisier
    one is not yet known: its round trip is close, not exact. Where the data is much narrower than the noise of the
    last step, or projected, many z lead to one x0, and iteration comes near it slowly or not at all: leave the
    projection out and end the grid with short steps.
    """
    if iterations < 1:
        raise ValueError(f"{iterations} iterations invert nothing: ask for 1 or more")
    z = x0
    eps: Tensor | None = None
    x0_prev: Tensor | None = None
    for at in reversed(list(iterate_steps(schedule, timesteps, x0))):
        now, then = at.now, at.then
        # t = 0 is data itself: the sampler's last step returns x0_hat
        alpha, sigma = (torch.ones(()), torch.zeros(())) if at.s == 0 else (then.alpha, then.sigma)
        slope = alpha * now.alpha + sigma * now.sigma
        wanted = z
        z = wanted / slope if x0_prev is None or eps is None else now.alpha * x0_prev + now.sigma * eps
        for _ in range(iterations):
            x0_prev = denoise(z, at.times, x0_prev)
            eps = (z - now.alpha * x0_prev) / now.sigma
            z = z + (wanted - alpha * x0_prev - sigma * eps) / slope
    return z

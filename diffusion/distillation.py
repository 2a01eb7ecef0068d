"""Progressive distillation: one step of a student's sampler is taught what several of a teacher's come to.

    jump(z, x0, now, then)          -> z where a step of DDIM ends
    jump_target(z, z_then, now, then) -> the x0 whose step of DDIM ends at z_then

A student of K steps estimates no x0 of the data but for its last step: it says what leads to the teacher's z at the
next of its own K times. So its estimates are right for that grid and DDIM alone, and are projected to where data lies
at the last step only.
Source: Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2. A guided teacher: Meng et al. 2023, arXiv:2210.03142.
Differs from them: the number of steps is not halved again and again, but cut to K at once, and the student may learn
from where its own steps have led it.
"""

from __future__ import annotations

from torch import Tensor

from diffusion.schedules import NoiseLevel


def jump(z: Tensor, x0: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Deterministic DDIM from one noise level to a lower one, (B, L, D); Song et al. 2021, arXiv:2010.02502, eq. 12."""
    return (then.alpha * x0 + then.sigma * (z - now.alpha * x0) / now.sigma).to(z.dtype)


def jump_target(z: Tensor, z_then: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """The x0 (B, L, D) with jump(z, x0, now, then) = z_then. `then` is less noisy than `now`."""
    ratio = then.sigma / now.sigma
    return ((z_then - ratio * z) / (then.alpha - ratio * now.alpha)).to(z.dtype)


def noise_in(z: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """The eps (B, L, D) that makes z of x0."""
    return ((z - level.alpha * x0) / level.sigma).to(z.dtype)

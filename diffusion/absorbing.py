"""DiffuSeq-v2: a learned absorbing state m towards which noise drifts, and discrete noise that jumps to it.

    shift = absorbing_shift(state (D,), mask (B, L) or None)         (B, L, D), zero where nothing is generated
    z_t = diffused(x0, eps, level, shift)                            training: x0 towards N(m, I)
    z_t = remasked(z_t, state, probability, uniform, mask)           training: whole positions replaced by m
    discrete_rate(level, rate)                                       ... with this probability (B,)
    make_denoise(network, ..., shift=shift)                          the estimate of x0 from such a z_t
    with_shift(sampler, shift)                                       any sampler, walking towards and from N(m, I)
    remasking(state, rate, generator_at, mask)                       a `correct` for samplers: jumps to m while sampling

The absorbing state is a shift of coordinates: x - m follows the usual process. Networks, x0, anchors, projections and
corrections all speak of x; only the sampler's own arithmetic is in x - m.

Source: Gong et al. 2023, arXiv:2310.05793, sections 3.1 and 3.2. Differs from their code: m is in the start noise too,
and the solver's state is its own, not the network's last estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.loss import diffuse
from diffusion.noise import GeneratorAt, placed
from diffusion.schedules import NoiseLevel, Schedule
from diffusion.transitions import Correct, Noise, Sampler


def absorbing_shift(state: Tensor, mask: Tensor | None = None) -> Tensor:
    """m at the positions that are generated, zero at those that are given: (B, L, D), or (1, 1, D) without a mask.

    state: (D,), learned. mask: (B, L) bool, True where text is generated, padding included.
    """
    return state.view(1, 1, -1) if mask is None else state * mask[..., None]


def diffused(x0: Tensor, eps: Tensor, level: NoiseLevel, shift: Tensor) -> Tensor:
    """z_t = alpha (x0 - m) + sigma eps + m, (B, L, D): N(m, I) where alpha is zero."""
    return diffuse(x0, eps, level) + (1 - level.alpha) * shift


def discrete_rate(level: NoiseLevel, rate: float) -> Tensor:
    """Probability that a position is replaced, sigma * rate: (B,). level: that of level_at. rate: of --denoise_rate."""
    return rate * level.sigma.flatten(1)[:, 0]


def remasked(z_t: Tensor, state: Tensor, probability: Tensor, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
    """z_t (B, L, D) with whole positions replaced by m, each with its text's probability (B,).

    uniform: (B, L) in [0, 1), drawn by the caller for the global batch. mask: (B, L), True where that may happen.
    """
    chosen = uniform < probability[:, None]
    if mask is not None:
        chosen = chosen & mask
    return torch.where(chosen[..., None], state.to(z_t.dtype), z_t)


def with_shift(sampler: Sampler, shift: Tensor) -> Sampler:
    """The sampler, from N(m, I) to data.

    Its z is standard normal noise, as without a shift: m is added here. denoise and correct see and return x; denoise
    comes from make_denoise(..., shift=shift), wrapped as usual.
    """

    def sample(
        denoise: Denoise,
        schedule: Schedule,
        timesteps: Tensor,
        z: Tensor,
        noise: Noise | None = None,
        correct: Correct | None = None,
    ) -> Tensor:
        m = shift.detach().to(z)

        def inner(y: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
            return denoise(y + m, t, None if x0_prev is None else x0_prev + m) - m

        def outer(y: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
            assert correct is not None
            return correct(y + m, x0 + m, mean + m, std, t, s, step) - m

        return sampler(inner, schedule, timesteps, z, noise, None if correct is None else outer) + m

    return sample


def remasking(state: Tensor, rate: float, generator_at: GeneratorAt, mask: Tensor | None = None) -> Correct:
    """Discrete noise while sampling: after a step with noise of size std each position becomes m with std * rate.

    Never at t = 0; with a deterministic sampler, whose std is zero, nothing is replaced. mask: (B, L), True where that
    may happen. generator_at: step -> a seeded generator.
    """

    def correct(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        if s == 0 or not std > 0:
            return z
        generator = generator_at(step)
        uniform = placed(torch.rand(z.shape[:2], generator=generator, device=generator.device), z)
        probability = torch.full((len(z),), float(std) * rate, device=z.device)
        return remasked(z, state, probability, uniform, mask)

    return correct

"""DiffuSeq-v2: a learned absorbing state m as the mean of the noise, and discrete noise that sets positions to m.

    noise = AbsorbingNoise.of(state (D,), mask (B, L) or None)       for diffusion.loss.corrupt and denoising_loss
    make_denoise(network, ..., shift=noise.shift)                    the estimate of x0 from such a z_t
    shift_sampler(sampler, shift)                                    any sampler, between N(m, I) and data
    remask_hook(state, rate, step_generator, mask)                   the discrete noise as a step hook of samplers

    absorbing_shift(state, mask)                                     (B, L, D), zero where nothing is generated
    mask_positions(z_t, state, probability, uniform, mask)           whole positions replaced by m
    mask_probability(level, rate)                                    ... with this probability (B,)

The absorbing state is a shift of coordinates: x - m follows the usual process. Networks, x0, known positions,
projections and step hooks work in x; only the arithmetic of the sampler works in x - m.

Source: Gong et al. 2023, arXiv:2310.05793, sections 3.1 and 3.2. Differs from their code: m is part of the initial
noise, too, and the solver updates z instead of replacing it by the last estimate of x0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.noise import StepGenerator, copy_like, draw
from diffusion.sampler_steps import Noise, Sampler, StepHook
from diffusion.schedules import NoiseLevel, Schedule


class AbsorbingNoise(NamedTuple):
    """The absorbing state of one training batch."""

    state: Tensor  # (D,), learned
    shift: Tensor  # absorbing_shift(state, mask)
    mask: Tensor | None = None  # (B, L) bool, the positions that are generated; None: all of them
    uniform: Tensor | None = None  # (B, L) in [0, 1): selects the positions that are replaced; None: none
    mask_rate: float = 0.0  # value of --denoise_rate

    @classmethod
    def of(
        cls, state: Tensor, mask: Tensor | None = None, uniform: Tensor | None = None, mask_rate: float = 0.0
    ) -> AbsorbingNoise:
        return cls(state, absorbing_shift(state, mask), mask, uniform, mask_rate)


def absorbing_shift(state: Tensor, mask: Tensor | None = None) -> Tensor:
    """m at the positions that are generated, zero at known positions: (B, L, D), or (1, 1, D) without a mask.

    state: (D,), learned. mask: (B, L) bool, True where text is generated, padding included.
    """
    return state.view(1, 1, -1) if mask is None else state * mask[..., None]


def mask_probability(level: NoiseLevel, rate: float) -> Tensor:
    """sigma * rate, (B,): the probability that a position is replaced. level: result of broadcast_level."""
    return rate * level.sigma.flatten(1)[:, 0]


def mask_positions(
    z_t: Tensor, state: Tensor, probability: Tensor, uniform: Tensor, mask: Tensor | None = None
) -> Tensor:
    """z_t (B, L, D) with whole positions replaced by m, each with the probability (B,) of its text.

    uniform: (B, L) in [0, 1), drawn by the caller for the global batch. mask: (B, L), True where positions may be
    replaced.
    """
    replaced = uniform < probability[:, None]
    if mask is not None:
        replaced = replaced & mask
    return torch.where(replaced[..., None], state.to(z_t.dtype), z_t)


def shift_sampler(sampler: Sampler, shift: Tensor) -> Sampler:
    """The sampler, from N(m, I) to data.

    Its z is standard normal noise, as without a shift: m is added here. denoise and step_hook receive and return x;
    denoise comes from make_denoise(..., shift=shift), wrapped as usual.
    """

    def sample(
        denoise: Denoise,
        schedule: Schedule,
        timesteps: Tensor,
        z: Tensor,
        noise: Noise | None = None,
        step_hook: StepHook | None = None,
    ) -> Tensor:
        m = shift.detach().to(z)

        def shifted_denoise(y: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
            return denoise(y + m, t, None if x0_prev is None else x0_prev + m) - m

        def shifted_hook(y: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
            assert step_hook is not None
            return step_hook(y + m, x0 + m, mean + m, std, t, s, step) - m

        return sampler(shifted_denoise, schedule, timesteps, z, noise, None if step_hook is None else shifted_hook) + m

    return sample


def remask_hook(state: Tensor, rate: float, step_generator: StepGenerator, mask: Tensor | None = None) -> StepHook:
    """Discrete noise while sampling: after a step with noise of size std, each position becomes m with
    probability std * rate.

    Nothing is replaced at t = 0, nor with a deterministic sampler, whose std is zero. mask: (B, L), True where
    positions may be replaced. step_generator: step -> a seeded generator.
    """

    def step_hook(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        if std.dim() > 0:
            std = std.square().mean().sqrt()  # a learned variance differs from number to number
        if s == 0 or not std > 0:
            return z
        generator = step_generator(step)
        uniform = copy_like(draw(torch.rand, z.shape[:2], generator), z)
        probability = torch.full((len(z),), float(std) * rate, device=z.device)
        return mask_positions(z, state, probability, uniform, mask)

    return step_hook

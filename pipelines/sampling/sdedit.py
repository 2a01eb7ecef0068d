"""Sampling that starts from texts: SDEdit, spherical interpolation, latent arithmetic, DDIM inversion.

sdedit(generator, clean, strength, seed)          -> latents near `clean` where strength is small
slerp(first, second, n)                           -> n clean latents on the arc between two texts
move(clean, direction)                            -> clean latents of texts, moved by a difference of latents
ddim_inversion_path(generator, first, second, n)  -> n samples from one text to the other; the ends are reconstructions
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffusion.ddim_maps import invert_ddim
from diffusion.denoisers import Denoise
from diffusion.guidance import with_known_positions
from diffusion.loss import corrupt
from diffusion.samplers import sample_ddim
from diffusion.schedules import broadcast_level
from pipelines.sampling.blocks import segments
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.sampler_call import SampleInputs, SamplerCall, SamplerHook, inputs_of_segments
from utils.errors import UserError
from utils.records import Condition, KnownPositions, Latents
from utils.train_eval import eval_mode

# Fixed-point iterations per inversion step; more do not improve the round-trip error with self-conditioning.
ITERATIONS = 2
# Mean squared round-trip error, relative to that of the latents; beyond it another text is the likelier reconstruction.
MAX_ROUNDTRIP_ERROR = 0.5


class SDEditStart:
    """A hook: the sampler starts at texts, noised to the first of its times that is at most `strength`.

    Source: Meng et al. 2022, arXiv:2108.01073 (SDEdit), section 3.
    """

    def __init__(self, x0: Tensor, strength: float, shared_noise: bool | Tensor = False) -> None:
        """x0: clean latents, (B, L, D). shared_noise: every text gets the noise of the first one, or this (1, L, D)."""
        self.x0, self.strength, self.shared_noise = x0, strength, shared_noise

    def __call__(self, call: SamplerCall) -> None:
        # 0.3 of a grid of tenths is a little more than 0.3
        call.timesteps = call.timesteps[call.timesteps <= self.strength + 1e-9]
        if len(call.timesteps) < 2:  # the last is 0
            raise UserError(
                f"strength {self.strength:g} is smaller than the last sampling step: raise it, or sampling_timesteps"
            )
        shared = self.shared_noise
        noise = shared.to(call.z) if isinstance(shared, Tensor) else call.z[:1] if shared else call.z
        noise = noise.expand_as(call.z)
        x0 = self.x0.to(call.z) - (0 if call.shift is None else call.shift)  # in the coordinates of a shifted sampler
        start = call.timesteps[:1].expand(len(x0)).to(call.z)
        call.z = corrupt(x0, noise, broadcast_level(call.schedule, start, x0))


@torch.no_grad()
def sdedit(
    generator: TextGenerator,
    clean: Latents,
    strength: float,
    seed: int,
    condition: SampleInputs | Condition | None = None,
    shared_noise: bool = False,
) -> Latents:
    """Clean latents (n, L, D), noised to time `strength` in (0, 1] and denoised again.

    condition: condition of the n texts, such as another class or their sources, with known positions where sources are
    packed. shared_noise: all texts get the same noise.
    UserError for a strength outside (0, 1], or one below the last step of the sampler.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is {strength:g}: give a time in (0, 1]; 1 keeps nothing of a text")
    found = []
    noise, given = generator.first_noise(seed) if shared_noise else False, SampleInputs.coerce(condition)
    with eval_mode(generator.denoiser):
        for first in range(0, len(clean), generator.batch_size):
            rows = slice(first, min(first + generator.batch_size, len(clean)))
            inputs = given if given.empty else given[rows]
            decode_mask = clean.mask[rows] if inputs.decode_mask is None else inputs.decode_mask
            inputs = replace(inputs, mask=clean.mask[rows], decode_mask=decode_mask)
            hooks: tuple[SamplerHook, ...] = (SDEditStart(clean.x0[rows], strength, noise), *generator.hooks)
            parts = segments(rows.start, rows.stop, generator.block_size)
            found.append(generator.prepare_rows(seed, parts, inputs_of_segments(inputs, parts), hooks=hooks).run())
    return Latents.concat(found)


def slerp(first: Latents, second: Latents, n: int, known: KnownPositions | None = None) -> Latents:
    """Spherical interpolation: n clean latents (n, L, D) between two (1, L, D), both ends included.

    known: positions (1, L) that both ends share, which are no part of the arc.
    Points on the arc are as long as the ends; on a straight line they would be shorter than the latents of any text.
    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """
    if known is not None:
        free = ~known.mask[..., None]
        between = slerp(Latents(first.x0 * free, first.mask), Latents(second.x0 * free, second.mask), n)
        return Latents(torch.where(free, between.x0, known.value), between.mask)
    a, b = first.x0.flatten(1), second.x0.flatten(1)  # (1, L D)
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1))
    share = torch.linspace(0, 1, n, device=a.device, dtype=a.dtype)[:, None]
    if angle.sin().abs() < 1e-4:  # parallel, or opposite, where the arc is not unique
        arc = torch.lerp(a, b, share)
    else:
        arc = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
    return Latents(arc.unflatten(1, first.x0.shape[1:]), first.mask.expand(n, -1))


def without_padding(latents: Latents) -> Latents:
    """Latents with zeros at padding, which then takes no part in angles and lengths."""
    return Latents(latents.x0 * latents.mask[..., None], latents.mask)


def move(clean: Latents, direction: Tensor) -> Latents:
    """Clean latents (n, L, D) + direction (L, D), each text as long a vector as before.

    Source: arithmetic of vectors, Mikolov et al. 2013, arXiv:1301.3781, section 4; in the latents of an autoencoder of
    texts, Shen et al. 2020, arXiv:1905.12777, section 5.3.
    """
    moved = (clean.x0 + direction).flatten(1)
    moved = torch.nn.functional.normalize(moved, dim=1) * clean.x0.flatten(1).norm(dim=1, keepdim=True)
    return Latents(moved.view_as(clean.x0), clean.mask)


@torch.no_grad()
def ddim_inversion_path(
    generator: TextGenerator, first: Latents, second: Latents, n: int, inputs: SampleInputs | None = None
) -> Latents:
    """n clean latents (n, L, D) on a path between two texts (1, L, D), both ends included.

    first, second: with the same mask, and zeros at padding. inputs: one row, the source that both texts have; None: no
    source.
    DDIM inversion maps each end to its noise; DDIM samples from n points on the arc between the two noises. The ends
    are the two texts again, up to the error of the inversion. No random numbers are drawn. The sampler is always
    DDIM; the number of steps is that of the flags.
    Source: Song et al. 2021, arXiv:2010.02502, sections 5.3 and 5.4.
    UserError if the round-trip error exceeds MAX_ROUNDTRIP_ERROR, and for a run with hooks or an absorbing state.
    """
    check_invertible(generator)
    ends, space = torch.cat([first.x0, second.x0]), generator.space
    schedule, times = generator.process.sampling_schedule, generator.process.grid(generator.steps)
    given = SampleInputs.coerce(inputs)

    def denoise_of(count: int) -> Denoise:
        rows = given if given.empty else given.repeat(count)
        mask = first.mask.expand(count, -1) if space.variable_length else None
        denoise = generator.make_denoise_fn(rows.condition, mask, full_batch=False, project=False, known=rows.known)
        return denoise if rows.known is None else with_known_positions(denoise, rows.known.value, rows.known.mask)

    with eval_mode(generator.denoiser):
        noise = invert_ddim(denoise_of(2), schedule, times, ends, ITERATIONS) * first.mask[..., None]
        arc = slerp(Latents(noise[:1], first.mask), Latents(noise[1:], second.mask), n, given.known)
        parts = [sample_ddim(denoise_of(len(z)), schedule, times, z) for z in arc.x0.split(generator.batch_size)]
    x0 = space.project(torch.cat(parts)) * first.mask[..., None]
    if given.known is not None:
        free = ~given.known.mask[..., None]
        ends, x0 = ends * free, torch.where(free, x0, 0)
    error = (x0[[0, -1]] - ends).square().mean() / ends.square().mean()
    if not error < MAX_ROUNDTRIP_ERROR:
        raise UserError(
            f"DDIM inversion does not reconstruct these texts (relative error {float(error):.2g}): raise "
            "sampling_timesteps, take --time_grid log_snr, or interpolate without inversion"
        )
    decode_mask = arc.mask if given.decode_mask is None else given.decode_mask.expand(n, -1)
    return Latents(x0, decode_mask, prompt=None if given.prompt is None else given.prompt.expand(n, -1))


def check_invertible(generator: TextGenerator) -> None:
    """UserError where DDIM inversion would not lead back to the texts."""
    if generator.absorbing is not None or generator.hooks:
        raise UserError(
            "DDIM inversion works without control, rounding and absorbing states: leave them out, or interpolate "
            "without inversion"
        )

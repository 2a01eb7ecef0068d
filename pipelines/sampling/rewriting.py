"""Texts that begin at other texts instead of at noise alone: variations of a text, and what lies between two.

rewritten(generator, clean, strength, seed) -> latents of as many texts, near `clean` where strength is small
between(first, second, n)                   -> n clean latents on the arc from one text to another
through_noise(generator, first, second, n)  -> n latents of texts of their own, whose ends are the two texts themselves
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.inversion import invert_ddim
from diffusion.loss import diffuse
from diffusion.samplers import sample_ddim
from diffusion.schedules import level_at
from pipelines.sampling.generate import TextGenerator
from pipelines.sampling.told import Told
from pipelines.sampling.walk import Extra, Walk
from utils.errors import UserError
from utils.modes import evaluating
from utils.records import Condition, Latents

ITERATIONS = 2  # of inversion for each step: more bring no more ends back where a network has self-conditioning
LOST = 0.5  # mean square by which ends may come back wrong, of latents whose own is 1: beyond, another text is likelier


class Begin:
    """An extra: the walk begins at texts, noised to the first time of its grid that is at most `strength`.

    Source: Meng et al. 2022, arXiv:2108.01073 (SDEdit), section 3.
    """

    def __init__(self, x0: Tensor, strength: float, alike: bool = False) -> None:
        """x0: clean latents, (B, L, D). alike: every text gets the noise of the first one."""
        self.x0, self.strength, self.alike = x0, strength, alike

    def __call__(self, walk: Walk) -> None:
        walk.times = walk.times[walk.times <= self.strength + 1e-9]  # 0.3 of a grid of tenths is a little more
        if len(walk.times) < 2:  # the last is 0
            raise UserError(
                f"strength {self.strength:g} is less than the last step of the grid: raise it, or sampling_timesteps"
            )
        noise = walk.z[:1].expand_as(walk.z) if self.alike else walk.z
        x0 = self.x0.to(walk.z) - (0 if walk.shift is None else walk.shift)  # where a shifted sampler has its zero
        start = walk.times[:1].expand(len(x0)).to(walk.z)
        walk.z = diffuse(x0, noise, level_at(walk.schedule, start, x0))


@torch.no_grad()
def rewritten(
    generator: TextGenerator,
    clean: Latents,
    strength: float,
    seed: int,
    condition: Condition | None = None,
    alike: bool = False,
) -> Latents:
    """Clean latents (n, L, D), noised to time `strength` in (0, 1] and denoised again.

    condition: what the n texts are told, such as another class. alike: all begin with the same noise.
    UserError for a strength outside (0, 1], or one below the last step of the sampler's grid.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength is {strength:g}: give a time in (0, 1], at which 1 keeps nothing of a text")
    parts = []
    with evaluating(generator.denoiser):
        for b, first in enumerate(range(0, len(clean), generator.block)):
            rows = slice(first, min(first + generator.block, len(clean)))
            told = Told(None if condition is None else condition[rows], mask=clean.mask[rows], read=clean.mask[rows])

            def of_block(_: int, n: int, draws: torch.Generator, told: Told = told) -> Told:
                return told

            walk = generator.walk(seed, b, of_block, None)
            begin: Extra = Begin(clean.x0[rows], strength, alike)
            for extra in (begin, *generator.extras):
                extra(walk)
            parts.append(walk.go())
    return Latents(torch.cat([part.x0 for part in parts]), torch.cat([part.mask for part in parts]))


def between(first: Latents, second: Latents, n: int) -> Latents:
    """n clean latents from one text to another, both ends included: (n, L, D) of two (1, L, D).

    On the arc between them, so that what lies on it is as long as the ends are; a straight line would pass through
    shorter vectors, which no text has. Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
    """
    a, b = first.x0.flatten(1), second.x0.flatten(1)  # (1, L D)
    angle = torch.acos(torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1))
    share = torch.linspace(0, 1, n, device=a.device, dtype=a.dtype)[:, None]
    if angle.sin().abs() < 1e-4:  # one direction, or opposite ones, which no single arc joins
        arc = torch.lerp(a, b, share)
    else:
        arc = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
    return Latents(arc.unflatten(1, first.x0.shape[1:]), first.mask.expand(n, -1))


@torch.no_grad()
def through_noise(generator: TextGenerator, first: Latents, second: Latents, n: int) -> Latents:
    """n clean latents (n, L, D) from one text to another, of two (1, L, D), both ends included.

    Each end is taken back to the noise that DDIM would make it of; what DDIM makes of the noise between them are texts
    of their own, and of the ends the two texts again, but for what inversion loses. Nothing is drawn. The sampler is
    DDIM whatever the flags say; the steps are theirs.
    Source: Song et al. 2021, arXiv:2010.02502, sections 5.3 and 5.4.
    UserError where ends are lost, and of a run that noise does not lead to zero.
    """
    if generator.absorbing is not None or generator.extras:
        raise UserError(
            "inversion takes the network alone: for control, rounding or an absorbing state interpolate without it"
        )
    ends, space = torch.cat([first.x0, second.x0]), generator.space
    schedule, times = generator.process.sampling_schedule, generator.process.grid(generator.steps)
    denoise = generator.denoise(None, None, whole=False, projects=False)
    with evaluating(generator.denoiser):
        noise = invert_ddim(denoise, schedule, times, ends, ITERATIONS)
        arc = between(Latents(noise[:1], first.mask), Latents(noise[1:], second.mask), n)
        parts = [sample_ddim(denoise, schedule, times, z) for z in arc.x0.split(generator.block)]
    x0 = space.project(torch.cat(parts))
    wrong = (x0[[0, -1]] - ends).square().mean() / ends.square().mean()
    if not wrong < LOST:
        raise UserError(
            f"these texts are lost on the way to noise and back (error {float(wrong):.2g}): raise sampling_timesteps, "
            "take --time_grid log_snr, or interpolate without inversion"
        )
    return Latents(x0, arc.mask)

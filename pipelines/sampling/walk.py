"""One block on its way from noise to data, and what may be added to that way: rounding, control, a view of it.

    walk = Walk(...); for extra in extras: extra(walk); x0 = walk.go()

An extra wraps the denoise of a walk, adds a correction, or both. They are applied in order, the innermost first:
control, rounding, view (pipelines/parts). Positions that are given come last, so that nothing moves them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.absorbing import with_shift
from diffusion.anchoring import anchored
from diffusion.corrections import in_turn
from diffusion.denoisers import Denoise
from diffusion.noise import GeneratorAt
from diffusion.samplers import Sampler
from diffusion.schedules import Schedule
from diffusion.transitions import Correct, Noise
from utils.records import Anchor, Latents
from utils.seeding import generator


@dataclass
class Walk:
    """What a sampler is going to be called with."""

    seed: int
    block: int  # number of the block; with the seed it decides all that is drawn
    denoise: Denoise
    sampler: Sampler
    schedule: Schedule
    times: Tensor  # (steps + 1,)
    z: Tensor  # (B, L, D), noise
    noise: Noise
    mask: Tensor  # (B, L) bool, positions of the texts
    visible: Tensor | None  # the same for a network; None: all
    read: Tensor  # (B, L) bool, what is decoded
    anchor: Anchor | None = None
    shift: Tensor | None = None  # (B, L, D) towards an absorbing state
    corrections: list[Correct] = field(default_factory=list)

    def generator_at(self, purpose: str) -> GeneratorAt:
        """step -> a generator of this block, for one purpose."""
        return lambda step: generator(self.seed, "block", self.block, purpose, step)

    @property
    def written(self) -> Tensor:
        """(B, L) bool: what the walk decides."""
        return self.mask if self.anchor is None else self.mask & ~self.anchor.mask

    @torch.no_grad()
    def go(self) -> Latents:
        """Sample. Returns clean latents whose mask says what is to be read."""
        denoise, sampler = self.denoise, self.sampler
        if self.anchor is not None:
            denoise = anchored(denoise, self.anchor.value, self.anchor.mask)
        if self.shift is not None:
            sampler = with_shift(sampler, self.shift)
        x0 = sampler(denoise, self.schedule, self.times, self.z, self.noise, in_turn(*self.corrections))
        return Latents(x0, self.read)


Extra = Callable[[Walk], None]

"""Arguments of one sampler call, and the hooks that modify it: rounding, classifier control, a trajectory.

    call = SamplerCall(...)
    for hook in hooks:
        hook(call)
    latents = call.run()

A hook wraps `denoise`, appends to `step_hooks`, or both. Hooks run in order, the innermost wrapper first: control,
rounding, trajectory (pipelines/components). Known positions are applied last, so that no hook changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.absorbing import shift_sampler
from diffusion.denoisers import Denoise
from diffusion.guidance import with_known_positions
from diffusion.noise import StepGenerator
from diffusion.sampler_steps import Noise, StepHook, compose_hooks
from diffusion.samplers import Sampler
from diffusion.schedules import Schedule
from utils.records import Anchor, Latents
from utils.seeding import seeded_generator


@dataclass
class SamplerCall:
    """Arguments of one sampler call. Shapes: B texts, L positions, D channels."""

    seed: int
    batch_index: int  # with the seed it decides everything that is drawn
    denoise: Denoise
    sampler: Sampler
    schedule: Schedule
    times: Tensor  # (steps + 1,), falling to 0
    z: Tensor  # (B, L, D), noise
    noise: Noise
    mask: Tensor  # (B, L) bool, positions of the texts
    attention_mask: Tensor | None  # (B, L) bool, the same for a network; None: all positions
    decode_mask: Tensor  # (B, L) bool, positions to decode
    anchor: Anchor | None = None  # known positions
    shift: Tensor | None = None  # (B, L, D) or (1, L, D), towards an absorbing state
    step_hooks: list[StepHook] = field(default_factory=list)

    def step_generator(self, purpose: str) -> StepGenerator:
        """step -> a generator of this batch, for one purpose."""
        return lambda step: seeded_generator(self.seed, "block", self.batch_index, purpose, step)

    @property
    def generated_mask(self) -> Tensor:
        """(B, L) bool: positions of the texts that are not known."""
        return self.mask if self.anchor is None else self.mask & ~self.anchor.mask

    @torch.no_grad()
    def run(self) -> Latents:
        """Sample. Returns x0 (B, L, D), with the mask of positions to decode."""
        denoise, sampler = self.denoise, self.sampler
        if self.anchor is not None:
            denoise = with_known_positions(denoise, self.anchor.value, self.anchor.mask)
        if self.shift is not None:
            sampler = shift_sampler(sampler, self.shift)
        x0 = sampler(denoise, self.schedule, self.times, self.z, self.noise, compose_hooks(*self.step_hooks))
        return Latents(x0, self.decode_mask)


SamplerHook = Callable[[SamplerCall], None]

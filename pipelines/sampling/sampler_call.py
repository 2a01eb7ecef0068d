"""Inputs and arguments of one sampler call, and the hooks that modify it: rounding, classifier control, a trajectory.

    inputs = SampleInputs(condition, ...)
    call = SamplerCall(...)
    for hook in hooks:
        hook(call)
    latents = call.run()

A hook wraps `denoise`, appends to `step_hooks`, or both. Hooks run in order, the innermost wrapper first: control,
rounding, trajectory (pipelines/components). Known positions are applied last, so that no hook changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from diffusion.absorbing import shift_sampler
from diffusion.denoisers import Denoise
from diffusion.guidance import with_known_positions
from diffusion.noise import StepGenerator
from diffusion.sampler_steps import Noise, StepHook, compose_hooks
from diffusion.samplers import Sampler
from diffusion.schedules import Schedule
from pipelines.sampling.blocks import Segment, step_generators
from utils.records import Condition, KnownPositions, Latents, to_device
from utils.seeding import noise_device


@dataclass
class SampleInputs:
    """Inputs of one sampling batch, one row for each text. Every part is optional."""

    condition: Condition | None = None
    known: KnownPositions | None = None  # known positions: a source, or the text around blanks
    mask: Tensor | None = None  # (B, L) bool, positions of the texts; None: lengths are drawn, as in training
    decode_mask: Tensor | None = None  # (B, L) bool, positions to decode; None: all positions of the texts
    prompt: Tensor | None = None  # (B, P) int64, what a text decoder reads beside the latents; see Latents

    @classmethod
    def coerce(cls, inputs: SampleInputs | Condition | None) -> SampleInputs:
        """A condition alone, or None, as SampleInputs."""
        return inputs if isinstance(inputs, SampleInputs) else cls(inputs)

    def __len__(self) -> int:
        """Number of rows. At least one part must be given."""
        return next(len(part) for part in self._parts() if part is not None)

    @property
    def empty(self) -> bool:
        return all(part is None for part in self._parts())

    def _parts(self) -> tuple[Condition | KnownPositions | Tensor | None, ...]:
        return self.condition, self.known, self.mask, self.decode_mask, self.prompt

    def repeat(self, times: int) -> SampleInputs:
        """Repeat each row `times` times: (B, ...) -> (B * times, ...)."""
        return self._map(lambda part: part.repeat(times), lambda x: x.repeat_interleave(times, dim=0))

    def __getitem__(self, rows: slice) -> SampleInputs:
        return self._map(lambda part: part[rows], lambda x: x[rows])

    @staticmethod
    def join(parts: Sequence[SampleInputs]) -> SampleInputs:
        """The rows of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return SampleInputs(*(_join(column) for column in zip(*(part._parts() for part in parts), strict=True)))

    def to(self, device: torch.device | str) -> SampleInputs:
        return self._map(lambda part: part.to(device), lambda x: to_device(x, device))

    def _map(self, of_record: Callable, of_tensor: Callable[[Tensor], Tensor]) -> SampleInputs:
        return SampleInputs(
            *(None if part is None else of_record(part) for part in (self.condition, self.known)),
            *(None if part is None else of_tensor(part) for part in (self.mask, self.decode_mask, self.prompt)),
        )


def _join(parts: Sequence[Any]) -> Any:
    """Tensors or records of tensors, joined along their first dimension; None where the parts are."""
    first = parts[0]
    if first is None or isinstance(first, Tensor):
        return None if first is None else torch.cat(list(parts))
    return type(first).concat(parts)


ConditionFn = Callable[[int, int, torch.Generator], Condition | SampleInputs | None]
"""(block, n, generator) -> inputs of the n texts of a block. The generator is the block's own, after it has drawn the
mask and the noise. Instead of all n rows it may return those alone that the batch computes, or the first ones of a
block, which then has fewer."""


def inputs_of_segments(inputs: SampleInputs, parts: Sequence[Segment]) -> ConditionFn:
    """A ConditionFn of the inputs of a batch, one row for each of its texts, given the segments of the batch."""
    starts = dict(zip((part.block for part in parts), accumulate(map(len, parts), initial=0), strict=False))
    lengths = {part.block: len(part) for part in parts}
    return lambda block, n, draws: inputs[starts[block] : starts[block] + lengths[block]]


InputsFn = Callable[[int, int], SampleInputs]
"""(first, last) -> inputs of the examples from `first` up to `last`, one row for each."""


@dataclass
class SamplerCall:
    """Arguments of one sampler call. Shapes: B texts, L positions, D channels."""

    seed: int
    parts: tuple[Segment, ...]  # rows of blocks: with the seed they determine all random numbers
    denoise: Denoise
    sampler: Sampler
    schedule: Schedule
    timesteps: Tensor  # (steps + 1,), falling to 0
    z: Tensor  # (B, L, D), noise
    noise: Noise
    mask: Tensor  # (B, L) bool, positions of the texts
    attention_mask: Tensor | None  # (B, L) bool, the same for a network; None: all positions
    decode_mask: Tensor  # (B, L) bool, positions to decode
    known: KnownPositions | None = None  # known positions
    shift: Tensor | None = None  # (B, L, D) or (1, L, D), towards an absorbing state
    prompt: Tensor | None = None  # (B, P) int64, what a text decoder reads beside the latents
    step_hooks: list[StepHook] = field(default_factory=list)
    keep_casts: Callable[[], AbstractContextManager[Any]] = nullcontext  # around all steps, see utils.distributed

    def step_generator(self, purpose: str, *, of_latents: bool = False) -> StepGenerator:
        """step -> a generator of the rows of this batch, for one purpose.

        of_latents: for numbers of the shape of z, which utils.seeding.noise_device may draw on the GPU.
        """
        device = noise_device(self.z.device, self.z.shape[-1], self.z.shape[-2]) if of_latents else "cpu"
        return step_generators(self.seed, self.parts, purpose, device)

    @property
    def has_first_text(self) -> bool:
        """Whether the first text of the seed is in this batch."""
        return self.parts[0].block == 0 and self.parts[0].first == 0

    @property
    def generated_mask(self) -> Tensor:
        """(B, L) bool: positions of the texts that are not known."""
        return self.mask if self.known is None else self.mask & ~self.known.mask

    @torch.no_grad()
    def run(self) -> Latents:
        """Sample. Returns x0 (B, L, D), with the mask of positions to decode."""
        denoise, sampler = self.denoise, self.sampler
        if self.known is not None:
            denoise = with_known_positions(denoise, self.known.value, self.known.mask)
        if self.shift is not None:
            sampler = shift_sampler(sampler, self.shift)
        with self.keep_casts():
            x0 = sampler(denoise, self.schedule, self.timesteps, self.z, self.noise, compose_hooks(*self.step_hooks))
        return self.latents(x0)

    def latents(self, x0: Tensor) -> Latents:
        """Latents x0 (B, L, D) of the rows of this call, as they are decoded."""
        return Latents(x0, self.decode_mask, prompt=self.prompt)


SamplerHook = Callable[[SamplerCall], None]

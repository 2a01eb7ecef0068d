"""Noise to latents: one call of a sampler for rows of blocks of random numbers, with conditions and hooks.

LatentSampler.prepare_rows -> SamplerCall.run -> a sampler of diffusion/samplers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusion.absorbing import absorbing_shift
from diffusion.denoisers import Denoise, clamp_x0
from diffusion.guidance import classifier_free_guided, with_known_inputs
from diffusion.noise import make_noise
from latent_models.generation.decoding import DECODING
from latent_models.spaces.normalization import NormalizedSpace
from pipelines.builders.diffusion_process import DiffusionProcess
from pipelines.sampling.blocks import Segment, segments, step_generators
from pipelines.sampling.sampler_call import ConditionFn, SampleInputs, SamplerCall, SamplerHook
from utils.compile import uncompiled
from utils.distributed import DistContext, keep_casts
from utils.preemption import check_interrupt
from utils.progress import Stopwatch
from utils.records import Condition, KnownPositions, Latents
from utils.seeding import noise_device, seeded_generator


class LatentSampler:
    """Samples latents with a trained denoiser."""

    def __init__(
        self,
        space: NormalizedSpace,
        denoiser: nn.Module,
        process: DiffusionProcess,
        *,
        steps: int,
        batch_size: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        max_length: int,
        guidance: float = 1.0,
        dist: DistContext | None = None,
        absorbing: Tensor | None = None,
        hooks: Sequence[SamplerHook] = (),
        block_size: int | None = None,
        whole_blocks: bool = True,
        decoding: Mapping[str, Mapping[str, Any]] = DECODING,
    ) -> None:
        """steps: number of steps of the sampler. batch_size: texts that are computed together. max_length: longest
        decoded text, in tokens.

        guidance: weight of classifier-free guidance for batches with a condition; 1: unguided. dist: processes that
        share the batches; all of them must make the same calls, and each gets all texts. absorbing: (D,), the
        absorbing state of the noise, if there is one. hooks: applied to each sampler call, innermost wrapper first.

        block_size: texts whose random numbers are drawn together; with another one a seed gives other texts. None:
        batch_size. whole_blocks: compute all texts of each block where batches are blocks, as an evaluation does, whose
        texts are then equal to the last bit; otherwise only the texts that are asked for. decoding: settings by
        strategy.
        """
        self.space, self.denoiser, self.process = space, denoiser, process
        self.steps, self.batch_size, self.device, self.autocast = steps, batch_size, device, autocast
        self.max_length, self.guidance, self.absorbing, self.hooks = max_length, guidance, absorbing, tuple(hooks)
        self.block_size, self.whole_blocks, self.decoding = block_size or batch_size, whole_blocks, decoding
        self.dist = dist or DistContext(device=device)
        self.timer = Stopwatch(device)  # durations of the last call of sample or candidates, over all processes

    @property
    def noise_device(self) -> torch.device:
        """The device that draws noise."""
        return noise_device(self.device, self.space.dim, self.space.length)

    def sample_latents(
        self, seed: int, block: int, conditions: ConditionFn | None = None, batch_size: int | None = None
    ) -> Latents:
        """Clean latents (B, L, D) of one block, on the device. batch_size: rows of the block, or self.block_size."""
        return self.prepare(seed, block, conditions, batch_size).run()

    def prepare(
        self,
        seed: int,
        block: int,
        conditions: ConditionFn | None = None,
        batch_size: int | None = None,
        hooks: Sequence[SamplerHook] | None = None,
    ) -> SamplerCall:
        """The sampler call of one block, with its hooks applied. batch_size: rows of the block, or self.block_size."""
        n = batch_size or self.block_size
        return self.prepare_rows(seed, (Segment(block, 0, n, n),), conditions, hooks=hooks, full_rows=n)

    @torch.no_grad()
    def prepare_rows(
        self,
        seed: int,
        parts: tuple[Segment, ...],
        conditions: ConditionFn | None = None,
        *,
        hooks: Sequence[SamplerHook] | None = None,
        full_rows: int | None = None,
    ) -> SamplerCall:
        """The sampler call of rows of blocks, with its hooks applied. hooks: None for self.hooks.

        full_rows: rows of a full batch, for which the network is compiled; None: self.batch_size.
        """
        space, process = self.space, self.process
        parts, mask, z, inputs = self._draw(seed, parts, conditions)
        inputs = inputs.to(self.device)
        mask, z = mask.to(self.device), z.to(self.device)
        mask = mask if inputs.mask is None else inputs.mask
        # None means the same as an all-True mask, and is faster
        attention_mask = mask if space.variable_length else None
        shift = None
        if self.absorbing is not None:
            shift = absorbing_shift(self.absorbing, None if inputs.known is None else ~inputs.known.mask)
        full_batch = len(z) == (full_rows or self.batch_size)
        call = SamplerCall(
            seed,
            parts,
            self.make_denoise_fn(inputs.condition, attention_mask, shift, full_batch=full_batch, known=inputs.known),
            process.sampler,
            process.sampling_schedule,
            process.grid(self.steps),
            z,
            make_noise(step_generators(seed, parts, "noise", self.noise_device), process.truncate_noise),
            mask,
            attention_mask,
            mask if inputs.decode_mask is None else inputs.decode_mask,
            inputs.known,
            shift,
            inputs.prompt,
            keep_casts=partial(keep_casts, self.denoiser, self.autocast, self.device),
        )
        for hook in self.hooks if hooks is None else hooks:
            hook(call)
        return call

    def first_noise(self, seed: int) -> Tensor:
        """The noise (1, L, D) of the first text of a seed, on the device that draws it."""
        return self._draw(seed, segments(0, 1, self.block_size), None)[2]

    def _draw(
        self, seed: int, parts: Sequence[Segment], conditions: ConditionFn | None
    ) -> tuple[tuple[Segment, ...], Tensor, Tensor, SampleInputs]:
        """The segments, and the initial mask (B, L), noise (B, L, D) and inputs of their rows, drawn on the CPU.

        Noise of many channels may be drawn on the GPU (utils.seeding.noise_device).
        """
        drawn, masks, noises, inputs = zip(*(self._draw_segment(seed, p, conditions) for p in parts), strict=True)
        return drawn, torch.cat(masks), torch.cat(noises), SampleInputs.join(inputs)

    def _draw_segment(
        self, seed: int, part: Segment, conditions: ConditionFn | None
    ) -> tuple[Segment, Tensor, Tensor, SampleInputs]:
        """Mask, noise and inputs are drawn for the whole block, in this order; the rows of the segment are returned."""
        # "block" is part of the seed: renaming it would change all samples
        draws, n = seeded_generator(seed, "block", part.block), part.size
        mask = self.space.sample_mask(n, draws)
        device, own = self.noise_device, draws
        if device.type != "cpu":
            own = seeded_generator(seed, "block", part.block, "start", device=device)
        z = torch.randn(n, self.space.length, self.space.dim, generator=own, device=device)
        inputs = SampleInputs.coerce(None if conditions is None else conditions(part.block, n, draws))
        if not inputs.empty and len(inputs) == n:
            inputs = inputs[part.rows]
        elif not inputs.empty and len(inputs) != len(part):
            assert part.first == 0, f"inputs of {len(inputs)} texts for rows {part.first} to {part.last} of {n}"
            part = replace(part, last=len(inputs))
        source_mask = None if inputs.condition is None else inputs.condition.source_mask
        if source_mask is not None and self.space.has_pair_lengths:
            lengths = pad(source_mask.sum(1), (part.first, 0))  # rows before the first one get a length, too
            mask = self.space.sample_mask(n, draws, lengths)[part.first :]
        else:
            mask = mask[part.rows]
        return part, mask, z[part.rows], inputs

    def make_denoise_fn(
        self,
        condition: Condition | None,
        mask: Tensor | None,
        shift: Tensor | None = None,
        *,
        full_batch: bool = True,
        project: bool = True,
        known: KnownPositions | None = None,
    ) -> Denoise:
        """The denoiser with its condition and attention mask (B, L), guidance and projection, as a sampler calls it.

        full_batch: use the compiled network, which is compiled for one batch size. project: map estimates to the
        nearest point of the space; off for DDIM inversion, since a projection is not invertible. known: known
        positions, whose null values guidance needs; the caller fixes the positions themselves (SamplerCall.run).
        """
        known = known if known is not None and known.null is not None else None
        with_null = (condition is not None or known is not None) and self.guidance != 1
        if with_null:
            condition = None if condition is None else Condition.stack(condition, condition.null())
            mask = None if mask is None else torch.cat([mask, mask])
            shift = None if shift is None or len(shift) == 1 else torch.cat([shift, shift])

        def network(z_t: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            check_interrupt()
            with self.autocast(), nullcontext() if full_batch else uncompiled(self.denoiser):
                return self.denoiser(z_t, time, mask, condition, x0_prev)

        process = self.process
        denoise = process.make_denoise(network, shift)
        if with_null and known is not None and known.null is not None:
            denoise = with_known_inputs(denoise, torch.cat([known.value, known.null]), known.mask.repeat(2, 1))
        denoise = classifier_free_guided(denoise, self.guidance) if with_null else denoise
        # in a space of embeddings, projection rounds to tokens, which is optional there (hooks.RoundingHook)
        if not (self.space.always_project and project):
            return denoise
        return clamp_x0(denoise, self.space.project, from_t=process.project_from_t)

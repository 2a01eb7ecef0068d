"""Noise to texts: sample latents in batches, and let the latent space decode them.

Texts are sampled in batches of a fixed size. Everything that batch b of a seed draws depends on (seed, b) alone, so
neither the number of texts in a call nor the number of processes changes any text.

    TextGenerator.sample -> _sample_batch -> SamplerCall.run -> a sampler of diffusion/samplers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.absorbing import absorbing_shift
from diffusion.denoisers import Denoise, clamp_x0
from diffusion.guidance import classifier_free_guided
from diffusion.noise import make_noise
from latent_models.generation.decoding import DECODING
from latent_models.spaces.normalization import NormalizedSpace
from latent_models.speculative.verification import SpeculativeLoop, pop_draft_stats
from pipelines.builders.diffusion_process import DiffusionProcess
from pipelines.sampling.sampler_call import ConditionFn, InputsFn, SampleInputs, SamplerCall, SamplerHook
from pipelines.sampling.trajectory import Trajectory
from utils.compile import uncompiled
from utils.distributed import DistContext, gather_objects
from utils.preemption import check_interrupt
from utils.progress import ProgressBar, Stopwatch
from utils.records import Condition, Latents
from utils.seeding import derive_seed, seeded_generator
from utils.train_eval import eval_mode

SampleId = tuple[int, int]  # batch index and row of a text


@dataclass
class SampleOutput:
    """Texts of TextGenerator.sample. The dictionaries have one entry for each decoding strategy."""

    texts: dict[str, list[str]]
    empty: dict[str, int] = field(default_factory=dict)  # number of empty texts
    origins: dict[str, list[SampleId | None]] = field(default_factory=dict)  # batch and row, or None for a missing text
    speed: Stopwatch = field(default_factory=Stopwatch)


class TextGenerator:
    """Samples texts with a trained denoiser in its latent space."""

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
    ) -> None:
        """steps: number of steps of the sampler. batch_size: texts per batch; with another one a seed gives other
        texts. max_length: longest decoded text, in tokens.

        guidance: weight of classifier-free guidance for batches with a condition; 1: unguided. dist: processes that
        share the batches; all of them must make the same calls, and each gets all texts. absorbing: (D,), the
        absorbing state of the noise, if there is one. hooks: applied to each sampler call, innermost wrapper first.
        """
        self.space, self.denoiser, self.process = space, denoiser, process
        self.steps, self.batch_size, self.device, self.autocast = steps, batch_size, device, autocast
        self.max_length, self.guidance, self.absorbing, self.hooks = max_length, guidance, absorbing, tuple(hooks)
        self.dist = dist or DistContext(device=device)
        self.timer = Stopwatch(device)  # durations of the last call of sample or candidates, over all processes

    def with_trajectory(self, **options: Any) -> Trajectory:
        """Add a hook that decodes intermediate estimates of the first batch of a call. options: those of Trajectory."""
        trajectory = Trajectory(lambda latents: self.decode(latents, "greedy", 0), **options)
        self.hooks = (*self.hooks, trajectory)
        return trajectory

    # ---- texts -----------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        seed: int,
        strategies: Sequence[str] = ("beam",),
        conditions: ConditionFn | None = None,
        *,
        quiet: bool = False,
    ) -> SampleOutput:
        """n texts for each decoding strategy.

        Empty texts are counted and replaced by texts of further batches, up to twice the number of batches that n
        needs; texts that are still missing then stay empty.
        """
        num_batches, dist = math.ceil(n / self.batch_size), self.dist
        found: dict[str, list[str]] = {strategy: [] for strategy in strategies}
        origins: dict[str, list[SampleId | None]] = {strategy: [] for strategy in strategies}
        empty = dict.fromkeys(strategies, 0)
        bar = ProgressBar("sample", num_batches * self.batch_size, unit="text", disable=quiet)
        timer = Stopwatch(self.device)
        with bar, eval_mode(self.denoiser):
            done = 0
            while done < 2 * num_batches and (missing := [s for s in strategies if len(found[s]) < n]):
                # one batch for each rank; more batches than n needs only if texts are empty
                limit = num_batches if done < num_batches else 2 * num_batches
                batches = range(done, min(done + dist.world_size, limit))
                mine = []
                for rank, b in enumerate(batches):
                    if rank == dist.rank:
                        mine.append(self._sample_batch(seed, b, missing, conditions, timer, self.batch_size))
                    elif conditions is not None:  # conditions may record the inputs of every batch
                        self._draw(seed, b, conditions, self.batch_size)
                for b, texts in zip(batches, gather_objects(dist, mine), strict=True):
                    for strategy in missing:
                        for row, text in enumerate(texts[strategy]):
                            if len(found[strategy]) < n:  # texts beyond n are dropped, and do not count as empty
                                empty[strategy] += not text
                                found[strategy] += [text] if text else []
                                origins[strategy] += [(b, row)] if text else []
                done = batches.stop
                bar.advance_to(min(bar.total, done * self.batch_size), timer.note(dist.world_size))
        self.timer = timer = Stopwatch.merge_parallel(gather_objects(dist, [timer]))
        return SampleOutput(
            {strategy: (texts + [""] * n)[:n] for strategy, texts in found.items()},
            empty,
            {strategy: (rows + [None] * n)[:n] for strategy, rows in origins.items()},
            timer,
        )

    def candidates(
        self,
        n: int,
        k: int,
        seed: int,
        strategies: Sequence[str],
        inputs: InputsFn,
        *,
        quiet: bool = False,
        decode: Callable[[Latents, int, int], list[str]] | None = None,
    ) -> dict[str, list[list[str]]]:
        """k independent texts for each of n examples: strategy -> n rows of k texts.

        The texts of an example are sampled in one batch. inputs is called once for each example. Empty texts are kept.
        decode: (latents, first, last) -> k texts for each example from `first` up to `last`; None: that of the space.
        """
        per_batch = max(1, self.batch_size // k)  # examples
        num_batches, dist, timer = math.ceil(n / per_batch), self.dist, Stopwatch(self.device)
        mine: list[tuple[int, dict[str, list[str]]]] = []
        bar = ProgressBar("sample", n * k, unit="text", disable=quiet)
        with bar, eval_mode(self.denoiser):
            for b in range(dist.rank, num_batches, dist.world_size):
                first, last = b * per_batch, min((b + 1) * per_batch, n)

                def repeated(_b: int, _n: int, _: object, first: int = first, last: int = last) -> SampleInputs:
                    return inputs(first, last).repeat(k)

                def own(latents: Latents, first: int = first, last: int = last) -> list[str]:
                    assert decode is not None
                    return decode(latents, first, last)

                texts = self._sample_batch(
                    seed, b, strategies, repeated, timer, per_batch * k, (last - first) * k, own if decode else None
                )
                mine.append((b, texts))
                done = (b // dist.world_size + 1) * dist.world_size * per_batch  # texts sampled by all processes
                bar.advance_to(min(n, done) * k, timer.note(dist.world_size))
            found: dict[str, list[list[str]]] = {strategy: [] for strategy in strategies}
            for _, texts in sorted(gather_objects(dist, mine), key=lambda part: part[0]):
                for strategy, rows in texts.items():
                    found[strategy] += [rows[i : i + k] for i in range(0, len(rows), k)]
        self.timer = Stopwatch.merge_parallel(gather_objects(dist, [timer]))
        return found

    def _sample_batch(
        self,
        seed: int,
        batch_index: int,
        strategies: Sequence[str],
        conditions: ConditionFn | None,
        timer: Stopwatch,
        batch_size: int,
        num_rows: int | None = None,
        decode: Callable[[Latents], list[str]] | None = None,
    ) -> dict[str, list[str]]:
        """The texts of one batch by decoding strategy. num_rows: number of rows of a short batch, for the timer.

        decode: used instead of the decoding of the space.
        """
        num_rows, texts = num_rows or batch_size, {}
        with timer.measure("denoise", num_rows):
            latents = self.prepare(seed, batch_index, conditions, batch_size).run()
        has_drafts = any(isinstance(part, SpeculativeLoop) for part in self.space.modules())
        if has_drafts:
            pop_draft_stats(self.space)  # reset the count: hooks may have decoded too
        for strategy in strategies:
            with timer.measure("decode", num_rows):
                if decode is None:
                    texts[strategy] = self.decode(latents, strategy, derive_seed(seed, "block", batch_index))
                else:
                    texts[strategy] = decode(latents)
            if has_drafts:
                timer.count(*pop_draft_stats(self.space))
        return texts

    @torch.no_grad()
    def decode(self, latents: Latents, strategy: str, seed: int) -> list[str]:
        """Decode latents to texts with one strategy. seed: used by strategies that sample tokens."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self.autocast():
            torch.manual_seed(derive_seed(seed, "decode", strategy))
            return self.space.decode(latents, max_length=self.max_length, **DECODING[strategy])

    # ---- latents ---------------------------------------------------------------------------------------------------

    def sample_latents(
        self, seed: int, batch_index: int, conditions: ConditionFn | None = None, batch_size: int | None = None
    ) -> Latents:
        """Clean latents (B, L, D) of one batch, on the device. batch_size: rows of a full batch, or self.batch_size."""
        return self.prepare(seed, batch_index, conditions, batch_size).run()

    @torch.no_grad()
    def prepare(
        self,
        seed: int,
        batch_index: int,
        conditions: ConditionFn | None = None,
        batch_size: int | None = None,
        hooks: Sequence[SamplerHook] | None = None,
    ) -> SamplerCall:
        """The sampler call of one batch, with its hooks applied. hooks: None for self.hooks."""
        space, process, n = self.space, self.process, batch_size or self.batch_size
        mask, z, inputs = self._draw(seed, batch_index, conditions, n)
        inputs = inputs.to(self.device)
        num_rows = n if inputs.empty else len(inputs)
        mask, z = mask[:num_rows].to(self.device), z[:num_rows].to(self.device)
        mask = mask if inputs.mask is None else inputs.mask
        # None means the same as an all-True mask, and is faster
        attention_mask = mask if space.variable_length else None
        shift = None
        if self.absorbing is not None:
            shift = absorbing_shift(self.absorbing, None if inputs.known is None else ~inputs.known.mask)

        def noise_generator(step: int) -> torch.Generator:
            return seeded_generator(seed, "block", batch_index, "noise", step)

        call = SamplerCall(
            seed,
            batch_index,
            self.make_denoise_fn(inputs.condition, attention_mask, shift, full_batch=num_rows == n),
            process.sampler,
            process.sampling_schedule,
            process.grid(self.steps),
            z,
            make_noise(noise_generator, process.truncate_noise, rows=n),
            mask,
            attention_mask,
            mask if inputs.decode_mask is None else inputs.decode_mask,
            inputs.known,
            shift,
            autocast=self.autocast,
        )
        for hook in self.hooks if hooks is None else hooks:
            hook(call)
        return call

    def _draw(
        self, seed: int, batch_index: int, conditions: ConditionFn | None, n: int
    ) -> tuple[Tensor, Tensor, SampleInputs]:
        """The initial mask (n, L), noise (n, L, D) and inputs of a batch, drawn in this order on the CPU."""
        # "block" is part of the seed: renaming it would change all samples
        draws = seeded_generator(seed, "block", batch_index)
        mask = self.space.sample_mask(n, draws)
        z = torch.randn(n, self.space.length, self.space.dim, generator=draws)
        inputs = SampleInputs.coerce(None if conditions is None else conditions(batch_index, n, draws))
        source_mask = None if inputs.condition is None else inputs.condition.source_mask
        if source_mask is not None and self.space.has_pair_lengths:
            mask = self.space.sample_mask(n, draws, source_mask.sum(1))
        return mask, z, inputs

    def make_denoise_fn(
        self,
        condition: Condition | None,
        mask: Tensor | None,
        shift: Tensor | None = None,
        *,
        full_batch: bool = True,
        project: bool = True,
    ) -> Denoise:
        """The denoiser with its condition and attention mask (B, L), guidance and projection, as a sampler calls it.

        full_batch: use the compiled network, which is compiled for one batch size. project: map estimates to the
        nearest point of the space; off for DDIM inversion, since a projection is not invertible.
        """
        with_null = condition is not None and self.guidance != 1
        if condition is not None and with_null:
            condition = Condition.stack(condition, condition.null())
            mask = None if mask is None else torch.cat([mask, mask])
            shift = None if shift is None or len(shift) == 1 else torch.cat([shift, shift])

        def network(z_t: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            check_interrupt()
            with self.autocast(), nullcontext() if full_batch else uncompiled(self.denoiser):
                return self.denoiser(z_t, time, mask, condition, x0_prev)

        process = self.process
        denoise = process.make_denoise(network, shift)
        denoise = classifier_free_guided(denoise, self.guidance) if with_null else denoise
        # in a space of embeddings, projection rounds to tokens, which is optional there (hooks.RoundingHook)
        if not (self.space.always_project and project):
            return denoise
        return clamp_x0(denoise, self.space.project, from_t=process.project_from_t)

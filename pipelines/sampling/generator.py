"""Noise to texts: sample latents in batches, and let the latent space decode them.

Random numbers are drawn in blocks (pipelines/sampling/blocks), so neither the number of texts in a call, nor the batch
size, nor the number of processes changes any text.

    TextGenerator.sample, stream -> _sample_batch -> SamplerCall.run -> a sampler of diffusion/samplers
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from latent_models.speculative.verification import SpeculativeLoop, pop_draft_stats
from pipelines.sampling.blocks import Segment, segments
from pipelines.sampling.latent_sampler import LatentSampler
from pipelines.sampling.sampler_call import (
    ConditionFn,
    InputsFn,
    inputs_of_segments,
)
from pipelines.sampling.trajectory import Trajectory
from utils.distributed import gather_objects
from utils.progress import ProgressBar, Stopwatch
from utils.records import Latents
from utils.seeding import derive_seed
from utils.train_eval import eval_mode

SampleId = tuple[int, int]  # block and row of a text
Found = list[tuple[SampleId, str]]


@dataclass
class SampleOutput:
    """Texts of TextGenerator.sample. The dictionaries have one entry for each decoding strategy."""

    texts: dict[str, list[str]]
    empty: dict[str, int] = field(default_factory=dict)  # number of empty texts
    origins: dict[str, list[SampleId | None]] = field(default_factory=dict)  # block and row, or None for a missing text
    speed: Stopwatch = field(default_factory=Stopwatch)


class TextGenerator(LatentSampler):
    """Samples texts with a trained denoiser in its latent space."""

    def with_trajectory(self, **options: Any) -> Trajectory:
        """Add a hook that decodes intermediate estimates of the first batch of a call. options: those of Trajectory."""
        trajectory = Trajectory(lambda latents: self.decode(latents, "greedy", 0), **options)
        self.hooks = (*self.hooks, trajectory)
        return trajectory

    @property
    def _computes_blocks(self) -> bool:
        return self.whole_blocks and self.batch_size == self.block_size

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

        Empty texts are counted and replaced by texts of further rows, up to twice the number of blocks that n needs;
        texts that are still missing then stay empty.
        """
        output = SampleOutput({s: [] for s in strategies}, dict.fromkeys(strategies, 0), {s: [] for s in strategies})
        for found in self._rounds(n, seed, strategies, conditions, output.empty, quiet):
            for strategy, texts in found.items():
                output.texts[strategy] += [text for _, text in texts]
                output.origins[strategy] += [origin for origin, _ in texts]
        for strategy in strategies:
            missing = n - len(output.texts[strategy])
            output.texts[strategy] += [""] * missing
            output.origins[strategy] += [None] * missing
        output.speed = self.timer
        return output

    def stream(
        self, n: int, seed: int, strategy: str, conditions: ConditionFn | None = None
    ) -> Iterator[list[tuple[SampleId | None, str]]]:
        """The texts of `sample`, each batch as soon as it is decoded, with the block and row of each text."""
        count = 0
        for found in self._rounds(n, seed, (strategy,), conditions, {strategy: 0}, quiet=True):
            count += len(found[strategy])
            yield [*found[strategy]]
        if count < n:
            yield [(None, "")] * (n - count)

    def _rounds(
        self,
        n: int,
        seed: int,
        strategies: Sequence[str],
        conditions: ConditionFn | None,
        empty: dict[str, int],
        quiet: bool,
    ) -> Iterator[dict[str, Found]]:
        """The texts that are not empty, after each batch of all processes. empty: counts the others."""
        size, dist = self.block_size, self.dist
        needed = math.ceil(n / size) * size
        bar = ProgressBar("sample", needed if self._computes_blocks else n, unit="text", disable=quiet)
        timer, counts, done = Stopwatch(self.device), dict.fromkeys(strategies, 0), 0
        with bar:
            while done < 2 * needed and (missing := [s for s in strategies if counts[s] < n]):
                # more texts than n only if some are empty
                if self._computes_blocks:
                    limit = needed if done < needed else 2 * needed
                else:
                    limit = min(2 * needed, done + n - min(counts[s] for s in missing))
                starts = range(done, limit, self.batch_size)[: dist.world_size]  # a batch for each rank
                batches = [segments(i, min(i + self.batch_size, limit), size) for i in starts]
                mine = []
                with eval_mode(self.denoiser):  # not around the yield: the caller may train, or never come back
                    for rank, parts in enumerate(batches):
                        if rank == dist.rank:
                            mine.append(self._sample_batch(seed, parts, missing, conditions, timer, self.batch_size))
                        elif conditions is not None:  # conditions may record the inputs of every batch
                            self._draw(seed, parts, conditions)
                new: dict[str, Found] = {strategy: [] for strategy in strategies}
                for parts, texts in zip(batches, gather_objects(dist, mine), strict=True):
                    rows = [(part.block, row) for part in parts for row in range(part.first, part.last)]
                    for strategy in missing:
                        for row, text in zip(rows, texts[strategy], strict=True):
                            if counts[strategy] < n:  # texts beyond n are dropped, and do not count as empty
                                empty[strategy] += not text
                                counts[strategy] += bool(text)
                                new[strategy] += [(row, text)] if text else []
                done += sum(len(part) for parts in batches for part in parts)
                bar.advance_to(min(bar.total, done), timer.note(dist.world_size))
                yield new
        self.timer = Stopwatch.merge_parallel(gather_objects(dist, [timer]))

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
        dist, timer = self.dist, Stopwatch(self.device)
        batches = self._example_batches(n, k)
        mine: list[tuple[int, dict[str, list[str]]]] = []
        bar = ProgressBar("sample", n * k, unit="text", disable=quiet)
        with bar, eval_mode(self.denoiser):
            for b in range(dist.rank, len(batches), dist.world_size):
                mine.append((b, self._sample_examples(batches[b], k, seed, strategies, inputs, timer, decode)))
                together = batches[min((b // dist.world_size + 1) * dist.world_size, len(batches)) - 1]
                bar.advance_to(together.stop * k, timer.note(dist.world_size))  # texts sampled by all processes
            found: dict[str, list[list[str]]] = {strategy: [] for strategy in strategies}
            for _, texts in sorted(gather_objects(dist, mine), key=lambda part: part[0]):
                for strategy, rows in texts.items():
                    found[strategy] += [rows[i : i + k] for i in range(0, len(rows), k)]
        self.timer = Stopwatch.merge_parallel(gather_objects(dist, [timer]))
        return found

    def stream_candidates(
        self, n: int, k: int, seed: int, strategy: str, inputs: InputsFn
    ) -> Iterator[tuple[range, list[list[str]]]]:
        """The rows of `candidates` in one process, each batch as soon as it is decoded: examples, k texts for each."""
        self.timer = timer = Stopwatch(self.device)
        for examples in self._example_batches(n, k):
            with eval_mode(self.denoiser):  # not around the yield: see _rounds
                texts = self._sample_examples(examples, k, seed, (strategy,), inputs, timer)[strategy]
            yield examples, [texts[i : i + k] for i in range(0, len(texts), k)]

    def _example_batches(self, n: int, k: int) -> list[range]:
        """The examples that are sampled together, with k texts each."""
        count = max(1, (self.block_size if self._computes_blocks else self.batch_size) // k)
        return [range(first, min(first + count, n)) for first in range(0, n, count)]

    def _sample_examples(
        self,
        examples: range,
        k: int,
        seed: int,
        strategies: Sequence[str],
        inputs: InputsFn,
        timer: Stopwatch,
        decode: Callable[[Latents, int, int], list[str]] | None = None,
    ) -> dict[str, list[str]]:
        first, last = examples.start, examples.stop
        parts = segments(first * k, last * k, max(1, self.block_size // k) * k)
        given = inputs_of_segments(inputs(first, last).repeat(k), parts)
        own = None if decode is None else (lambda latents: decode(latents, first, last))
        full = max(1, self.batch_size // k) * k
        return self._sample_batch(seed, parts, strategies, given, timer, full, own)

    def _sample_batch(
        self,
        seed: int,
        parts: tuple[Segment, ...],
        strategies: Sequence[str],
        conditions: ConditionFn | None,
        timer: Stopwatch,
        full_rows: int,
        decode: Callable[[Latents], list[str]] | None = None,
    ) -> dict[str, list[str]]:
        """The texts of one batch by decoding strategy. decode: used instead of the decoding of the space."""
        num_rows, texts = sum(map(len, parts)), {}
        with timer.measure("denoise", num_rows):
            latents = self.prepare_rows(seed, parts, conditions, full_rows=full_rows).run()
        has_drafts = any(isinstance(part, SpeculativeLoop) for part in self.space.modules())
        if has_drafts:
            pop_draft_stats(self.space)  # reset the count: hooks may have decoded too
        for strategy in strategies:
            with timer.measure("decode", num_rows):
                texts[strategy] = (
                    self._decode_rows(latents, strategy, seed, parts) if decode is None else decode(latents)
                )
            if has_drafts:
                timer.count(*pop_draft_stats(self.space))
        return texts

    def _decode_rows(self, latents: Latents, strategy: str, seed: int, parts: Sequence[Segment]) -> list[str]:
        """The texts of a batch. A strategy that samples tokens draws for each block, which then decodes by itself."""
        # the last block of an evaluation of pairs draws for its own rows, as its published texts did
        draws = self.space.decoding_draws or self.decoding[strategy].get("do_sample")
        if self._computes_blocks or not draws:
            return self.decode(latents, strategy, derive_seed(seed, "block", parts[0].block))
        texts, first = [], 0
        for part in parts:
            rows = latents[first : first + len(part)]
            texts += self.decode(rows, strategy, derive_seed(seed, "block", part.block), part)
            first += len(part)
        return texts

    @torch.no_grad()
    def decode(self, latents: Latents, strategy: str, seed: int, part: Segment | None = None) -> list[str]:
        """Decode latents to texts with one strategy. seed: used by strategies that sample tokens.

        part: the rows of a block that the latents are; the tokens are then those of the whole block.
        """
        options = dict(self.decoding[strategy])
        if part is not None and len(part) < part.size:
            options["draw_rows"] = (part.first, part.size)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self.autocast():
            torch.manual_seed(derive_seed(seed, "decode", strategy))
            return self.space.decode(latents, max_length=self.max_length, **options)

"""Noise to texts: draw latents with the sampler, then let the space decode them.

Texts come in blocks of fixed size, and block b of a seed is drawn from (seed, b) alone: how many texts are asked for,
and how many processes share the work, change nothing in any of them.
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
from diffusion.denoisers import Denoise, clamped, make_denoise
from diffusion.guidance import guided
from diffusion.noise import make_noise
from latent_models.decoding import DECODING
from latent_models.normalisation import Normalised
from pipelines.building.process import Process
from pipelines.sampling.told import Told
from pipelines.sampling.trajectory import Trajectory
from pipelines.sampling.walk import Extra, Walk
from utils.distributed import Ranks, gather_objects
from utils.modes import evaluating
from utils.progress import Progress
from utils.records import Condition, Latents
from utils.seeding import derive, generator
from utils.speed import uncompiled
from utils.stop import give_way
from utils.stopwatch import Stopwatch

Labels = Callable[[int, torch.Generator], Tensor]  # (n, generator) -> class ids (n,)
Conditions = Callable[[int, int, torch.Generator], Condition | Told | None]
"""(block, n, generator) -> what its n texts are told. generator: of the block, after its mask and its noise were drawn.
Fewer rows than n make a block that short; its texts are the same as in a whole one."""


def of_labels(labels: Labels) -> Conditions:
    """Conditions of class ids alone."""
    return lambda block, n, generator: Condition.of(class_id=labels(n, generator))


@dataclass
class Sampled:
    """Texts by decoding strategy, and how many came out empty on the way."""

    texts: dict[str, list[str]]
    empty: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[tuple[int, int] | None]] = field(
        default_factory=dict
    )  # block and row that a text comes from
    speed: Stopwatch = field(default_factory=Stopwatch)


class TextGenerator:
    """A trained denoiser and its space, ready to write."""

    def __init__(
        self,
        space: Normalised,
        denoiser: nn.Module,
        process: Process,
        *,
        steps: int,
        block: int,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        max_length: int,
        guidance: float = 1.0,
        ranks: Ranks | None = None,
        absorbing: Tensor | None = None,
        extras: Sequence[Extra] = (),
    ) -> None:
        """steps: of the sampler. block: texts drawn together. max_length: of a decoded text in tokens.

        guidance: weight of classifier-free guidance wherever there is a condition; 1: off. ranks: processes that share
        the blocks; every one of them must then ask for the same texts, and all get them. absorbing: (D,), the state
        that noise drifts to, where there is one. extras: what is added to each walk, the innermost first.
        """
        self.space, self.denoiser, self.process = space, denoiser, process
        self.steps, self.block, self.device, self.autocast, self.max_length = steps, block, device, autocast, max_length
        self.guidance = guidance
        self.absorbing, self.extras = absorbing, tuple(extras)
        self.ranks = ranks or Ranks(device=device)
        self.watch = Stopwatch(device)  # of the last call of sample or candidates, by all ranks

    @torch.no_grad()
    def latents(self, seed: int, b: int, conditions: Conditions | None = None, rows: int | None = None) -> Latents:
        """Block b of a seed: clean latents (n, L, D), on the device. rows: n of a whole block; unset: self.block."""
        walk = self.walk(seed, b, conditions, rows)
        for extra in self.extras:
            extra(walk)
        return walk.go()

    def watched(self, **how: Any) -> Trajectory:
        """Look at the texts of every call's first block on their way; how: of Trajectory. Returns what looks."""
        trajectory = Trajectory(lambda latents: self.decode(latents, "greedy", 0), **how)
        self.extras = (*self.extras, trajectory)
        return trajectory

    def walk(self, seed: int, b: int, conditions: Conditions | None, rows: int | None) -> Walk:
        """Block b of a seed as it is about to be sampled, without extras."""
        space, process, n = self.space, self.process, rows or self.block
        mask, z, told = self._drawn(seed, b, conditions, n)
        told = told.to(self.device)
        some = n if told.empty else len(told)
        mask, z = mask[:some].to(self.device), z[:some].to(self.device)
        mask = mask if told.mask is None else told.mask
        visible = mask if space.masked else None  # None says the same of an all-True mask, and is faster
        shift = None
        if self.absorbing is not None:
            shift = absorbing_shift(self.absorbing, None if told.anchor is None else ~told.anchor.mask)

        def own(step: int) -> torch.Generator:
            return generator(seed, "block", b, "noise", step)

        return Walk(
            seed,
            b,
            self.denoise(told.condition, visible, shift, whole=some == n),
            process.sampler,
            process.sampling_schedule,
            process.grid(self.steps),
            z,
            make_noise(own, process.noise_bound, rows=n),
            mask,
            visible,
            mask if told.read is None else told.read,
            told.anchor,
            shift,
        )

    def _drawn(self, seed: int, b: int, conditions: Conditions | None, n: int) -> tuple[Tensor, Tensor, Told]:
        """What block b starts from, on the CPU: mask (n, L), noise (n, L, D), and what its texts are told."""
        draws = generator(seed, "block", b)
        mask = self.space.sample_mask(n, draws)
        z = torch.randn(n, self.space.length, self.space.dim, generator=draws)
        told = Told.of(None if conditions is None else conditions(b, n, draws))
        read = None if told.condition is None else told.condition.source_mask
        if read is not None and self.space.knows_pairs:
            mask = self.space.sample_mask(n, draws, read.sum(1))
        return mask, z, told

    def denoise(
        self,
        condition: Condition | None,
        mask: Tensor | None,
        shift: Tensor | None = None,
        *,
        whole: bool = True,
        projects: bool = True,
    ) -> Denoise:
        """The network bound to a condition and a mask (B, L), guided, projected: all that a sampler asks for.

        whole: its batches are of a size that comes again, for which it is worth compiling. projects: estimates are
        brought back to where data lies, from which no way leads back to the noise they were made of.
        """
        with_null = condition is not None and self.guidance != 1
        if condition is not None and with_null:
            condition = Condition.stack(condition, condition.null())
            mask = None if mask is None else torch.cat([mask, mask])
            shift = None if shift is None or len(shift) == 1 else torch.cat([shift, shift])

        def network(z_t: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            give_way()
            with self.autocast(), nullcontext() if whole else uncompiled(self.denoiser):
                return self.denoiser(z_t, time, mask, condition, x0_prev)

        process = self.process
        schedule, objective = process.sampling_schedule, process.options.objective
        denoise = make_denoise(network, objective, schedule, process.time_input, shift=shift)
        denoise = guided(denoise, self.guidance) if with_null else denoise
        # embeddings are everywhere: rounding estimates to tokens is a choice (rounding.py)
        if self.space.trainable or not projects:
            return denoise
        return clamped(denoise, self.space.project, from_t=process.project_from)

    @torch.no_grad()
    def decode(self, latents: Latents, strategy: str, seed: int) -> list[str]:
        """Texts of latents by one strategy; seed decides what a sampling strategy draws."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self.autocast():
            torch.manual_seed(derive(seed, "decode", strategy))
            return self.space.decode(latents, max_length=self.max_length, **DECODING[strategy])

    def candidates(
        self,
        n: int,
        k: int,
        seed: int,
        strategies: Sequence[str],
        told: Callable[[int, int], Condition | Told],
        *,
        quiet: bool = False,
    ) -> dict[str, list[list[str]]]:
        """k independent texts of each of n examples, drawn together: strategy -> rows of candidates.

        told: (first, last) -> the condition of these examples, asked for once each. Empty texts stay: they are what was
        said of that example.
        """
        together = max(1, self.block // k)
        mine: list[tuple[int, str, list[list[str]]]] = []
        bar = Progress("sample", n * k, unit="text", quiet=quiet)
        watch, ranks, blocks = Stopwatch(self.device), self.ranks, math.ceil(n / together)
        with bar, evaluating(self.denoiser):
            for b in range(ranks.rank, blocks, ranks.world):
                first, last = b * together, min((b + 1) * together, n)

                def of_block(b: int, rows: int, _: torch.Generator, first: int = first, last: int = last) -> Told:
                    return Told.of(told(first, last)).repeat(k)

                with watch.measure("denoise", (last - first) * k):
                    latents = self.latents(seed, b, of_block, together * k)
                for strategy in strategies:
                    texts = self._watched_decode(latents, strategy, derive(seed, "block", b), watch, (last - first) * k)
                    mine.append((b, strategy, [texts[i : i + k] for i in range(0, len(texts), k)]))
                bar.at(min(n, (b // ranks.world + 1) * ranks.world * together) * k, watch.note(ranks.world))
            found: dict[str, list[list[str]]] = {strategy: [] for strategy in strategies}
            for _, strategy, rows in sorted(gather_objects(ranks, mine), key=lambda part: part[0]):
                found[strategy] += rows
        self.watch = Stopwatch.side_by_side(gather_objects(ranks, [watch]))
        return found

    def sample(
        self,
        n: int,
        seed: int,
        strategies: Sequence[str] = ("beam",),
        conditions: Conditions | None = None,
        *,
        quiet: bool = False,
    ) -> Sampled:
        """n texts for each strategy.

        Empty texts are counted, and replaced by texts of further blocks, up to twice the blocks that n needs; what is
        still missing then stays empty.
        """
        blocks, ranks = math.ceil(n / self.block), self.ranks
        found: dict[str, list[str]] = {strategy: [] for strategy in strategies}
        places: dict[str, list[tuple[int, int] | None]] = {strategy: [] for strategy in strategies}
        empty = dict.fromkeys(strategies, 0)
        bar = Progress("sample", blocks * self.block, unit="text", quiet=quiet)
        watch = Stopwatch(self.device)
        with bar, evaluating(self.denoiser):
            done = 0
            while done < 2 * blocks and (lacking := [s for s in strategies if len(found[s]) < n]):
                # a block for each rank; those beyond what n needs only where texts came out empty
                turn = range(done, min(done + ranks.world, blocks if done < blocks else 2 * blocks))
                mine = []
                for place, b in enumerate(turn):
                    if place == ranks.rank:
                        mine.append(self._block(seed, b, lacking, conditions, watch))
                    elif conditions is not None:  # which may remember what every block was told
                        self._drawn(seed, b, conditions, self.block)
                for b, texts in zip(turn, gather_objects(ranks, mine), strict=True):
                    for strategy in lacking:
                        for row, text in enumerate(texts[strategy]):
                            if len(found[strategy]) < n:  # a text beyond n was never asked for, empty or not
                                empty[strategy] += not text
                                found[strategy] += [text] if text else []
                                places[strategy] += [(b, row)] if text else []
                done = turn.stop
                bar.at(min(bar.total, done * self.block), watch.note(ranks.world))
        self.watch = watch = Stopwatch.side_by_side(gather_objects(ranks, [watch]))
        return Sampled(
            {strategy: (texts + [""] * n)[:n] for strategy, texts in found.items()},
            empty,
            {strategy: (where + [None] * n)[:n] for strategy, where in places.items()},
            watch,
        )

    def _block(
        self, seed: int, b: int, strategies: Sequence[str], conditions: Conditions | None, watch: Stopwatch
    ) -> dict[str, list[str]]:
        """The texts of block b by each strategy."""
        with watch.measure("denoise", self.block):
            latents = self.latents(seed, b, conditions)
        texts = {}
        for strategy in strategies:
            texts[strategy] = self._watched_decode(latents, strategy, derive(seed, "block", b), watch, self.block)
        return texts

    def _watched_decode(self, latents: Latents, strategy: str, seed: int, watch: Stopwatch, n: int) -> list[str]:
        """decode, with its time and its passes as those of n texts' writing."""
        self.space.passes()  # of others, who looked at texts on their way
        with watch.measure("decode", n):
            texts = self.decode(latents, strategy, seed)
        watch.count(*self.space.passes())
        return texts

"""Which rows of a corpus, and which random numbers, belong to a step, a rank and a micro-batch.

Both are pure functions of (seed, step) for the global batch, of which each rank and each micro-batch takes its slice.
So a resumed run continues with the rows and the noise of an uninterrupted run, and gradient accumulation or more ranks
give the same result as one large batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from utils.errors import UserError
from utils.seeding import StepRNG, derive_seed, seeded_generator


class BatchSampler(Protocol):
    """Rows and random numbers of one micro-batch of this rank."""

    @property
    def seed(self) -> int: ...

    @property
    def micro_batches(self) -> range:
        """Numbers of the micro-batches of this rank; there may be none."""

    def rows(self, step: int, micro: int, n: int) -> Tensor:
        """Row numbers (B,) of a corpus of n texts."""

    def rng(self, step: int, micro: int, device: torch.device | str = "cpu") -> StepRNG:
        """Random numbers of these rows."""


@dataclass(frozen=True)
class TrainingSampler:
    """Shuffled epochs, one after another."""

    seed: int
    batch_size: int  # texts of one process and one micro-batch
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def global_batch_size(self) -> int:
        """Number of texts in one optimizer step, over all ranks and micro-batches."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def micro_batches(self) -> range:
        return range(self.accumulate)

    def bounds(self, micro: int) -> tuple[int, int]:
        """First and last row (exclusive) of a micro-batch within the global batch."""
        start = (micro * self.world_size + self.rank) * self.batch_size
        return start, start + self.batch_size

    def rows(self, step: int, micro: int, n: int) -> Tensor:
        start, stop = self.bounds(micro)
        return batch_indices(self.seed, step, self.global_batch_size, n)[start:stop]

    def rng(self, step: int, micro: int, device: torch.device | str = "cpu") -> StepRNG:
        return StepRNG(self.seed, step, self.global_batch_size, *self.bounds(micro), device=device)


@dataclass(frozen=True)
class ValidationSampler:
    """Fixed validation rows and noise, so that loss curves are comparable across steps and runs.

    num_examples: number of rows, at most those of the split. The ranks share them in micro-batches of batch_size. The
    rows and random numbers depend neither on the batch size nor on the number of ranks.
    """

    batch_size: int
    num_examples: int
    rank: int = 0
    world_size: int = 1

    @property
    def seed(self) -> int:
        """A fixed seed, the same for every run and --random_seed."""
        return derive_seed(0, "held out")

    @property
    def micro_batches(self) -> range:
        return range(len(range(self.rank * self.batch_size, self.num_examples, self.batch_size * self.world_size)))

    def bounds(self, micro: int) -> tuple[int, int]:
        """First and last row (exclusive) of a micro-batch within the validation rows."""
        start = (micro * self.world_size + self.rank) * self.batch_size
        return start, min(start + self.batch_size, self.num_examples)

    def rows(self, step: int, micro: int, n: int) -> Tensor:
        """step has no effect."""
        start, stop = self.bounds(micro)
        return batch_indices(self.seed, 0, self.num_examples, n)[start:stop]

    def rng(self, step: int, micro: int, device: torch.device | str = "cpu") -> StepRNG:
        """step has no effect."""
        return StepRNG(self.seed, 0, self.num_examples, *self.bounds(micro), device=device)


@lru_cache(maxsize=4)  # each step of a run needs the same epoch, and a step at the end of an epoch needs two
def _order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=seeded_generator(seed, "epoch", epoch))


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """(n,) the rows of one epoch in their order: a permutation that depends on the arguments alone."""
    return _order(seed, epoch, n).clone()


def batch_indices(seed: int, step: int, batch: int, n: int) -> Tensor:
    """(batch,) the rows, of n, that step `step` (counted from 0) takes.

    No epoch ends with a smaller batch: a step takes the end of one epoch and the beginning of the next, and a batch
    that is larger than the corpus takes several epochs. Every row comes once per epoch.
    """
    if n < 1:
        raise UserError("there are no rows to draw a batch from: check the data files")
    parts = []
    position, end = step * batch, (step + 1) * batch
    while position < end:
        epoch, offset = divmod(position, n)
        parts.append(_order(seed, epoch, n)[offset : offset + end - position])
        position += len(parts[-1])
    return torch.cat(parts)

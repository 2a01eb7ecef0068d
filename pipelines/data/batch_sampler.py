"""Which rows and which random numbers belong to a step, a rank and a micro-batch.

Both are functions of (seed, step) for the global batch, of which each rank and micro-batch takes its slice: so a
resumed run sees what an uninterrupted one would have seen, and accumulation or more ranks equal one large batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dataset_utils.batching import indices
from utils.seeding import Draws, derive


@dataclass(frozen=True)
class BatchPlan:
    seed: int
    batch_size: int  # texts of one process and one micro-batch
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    @property
    def total(self) -> int:
        """Texts of one optimizer step."""
        return self.batch_size * self.accumulate * self.world

    @property
    def pieces(self) -> range:
        """Numbers of this rank's micro-batches."""
        return range(self.accumulate)

    def bounds(self, micro: int) -> tuple[int, int]:
        start = (micro * self.world + self.rank) * self.batch_size
        return start, start + self.batch_size

    def rows(self, step: int, micro: int, n: int) -> Tensor:
        """Rows (batch_size,) of a corpus of n texts."""
        start, stop = self.bounds(micro)
        return indices(self.seed, step, self.total, n)[start:stop]

    def draws(self, step: int, micro: int, device: torch.device | str = "cpu") -> Draws:
        return Draws(self.seed, step, self.total, *self.bounds(micro), device=device)


@dataclass(frozen=True)
class HeldOutPlan(BatchPlan):
    """The same rows and the same random numbers whenever it is asked: curves of held-out losses are then smooth.

    `texts` rows, in pieces of batch_size that the ranks share; how large pieces are and how many ranks changes nothing.
    """

    texts: int = 1

    @classmethod
    def of(cls, plan: BatchPlan, texts: int, n: int) -> HeldOutPlan:
        """texts: how many are wanted of n that there are. plan: of training, whose seed makes no difference."""
        return cls(derive(0, "held out"), plan.batch_size, 1, plan.rank, plan.world, min(texts, n))

    @property
    def total(self) -> int:
        return self.texts

    @property
    def pieces(self) -> range:
        """There may be none."""
        return range(len(range(self.rank * self.batch_size, self.texts, self.batch_size * self.world)))

    def bounds(self, micro: int) -> tuple[int, int]:
        start, stop = super().bounds(micro)
        return start, min(stop, self.texts)

    def rows(self, step: int, micro: int, n: int) -> Tensor:
        return super().rows(0, micro, n)

    def draws(self, step: int, micro: int, device: torch.device | str = "cpu") -> Draws:
        return super().draws(0, micro, device)

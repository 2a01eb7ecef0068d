"""Batches of texts of similar lengths, which hold little padding, as a pure function of (seed, step)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipelines.data.batch_sampler import TrainingSampler, batch_indices
from utils.seeding import StepRNG, seeded_generator

WINDOW = 32  # global batches whose texts are sorted together


@dataclass(frozen=True)
class LengthBuckets:
    """The rows of a TrainingSampler, exchanged among the global batches of a window by the lengths of their texts.

    The batches of a window come in random order. Every row comes as often as before, within a window of steps.
    """

    sampler: TrainingSampler
    lengths: np.ndarray  # (n,) of all rows
    window: int = WINDOW
    _of_window: dict[int, Tensor] = field(default_factory=dict, repr=False)  # the newest one

    @property
    def seed(self) -> int:
        return self.sampler.seed

    @property
    def micro_batches(self) -> range:
        return self.sampler.micro_batches

    @property
    def global_batch_size(self) -> int:
        return self.sampler.global_batch_size

    def rows(self, step: int, micro: int, n: int) -> Tensor:
        start, stop = self.sampler.bounds(micro)
        return self.rows_of_step(step, n)[start:stop]

    def rows_of_step(self, step: int, n: int) -> Tensor:
        """Rows of the global batch, of all ranks and micro-batches."""
        at, place = divmod(step, self.window)
        if at not in self._of_window:
            self._of_window.clear()
            self._of_window[at] = self._sorted(at, n)
        return self._of_window[at][place]

    def rng(self, step: int, micro: int, device: torch.device | str = "cpu") -> StepRNG:
        return self.sampler.rng(step, micro, device)

    def _sorted(self, at: int, n: int) -> Tensor:
        """(window, global batch) rows of window number `at`."""
        rows = batch_indices(self.seed, at, self.window * self.global_batch_size, n)
        by_length = torch.from_numpy(self.lengths[rows.numpy()]).sort(stable=True).indices
        order = torch.randperm(self.window, generator=seeded_generator(self.seed, "order of buckets", at))
        return rows[by_length].view(self.window, -1)[order]

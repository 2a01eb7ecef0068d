"""Which times training looks at: evenly spread, or where the loss is large (--schedule_sampler).

What importance sampling remembers is of the global batch: after each optimizer step every rank gathers the losses of
all, and remembers the same; checkpoints hold it, so that a resumed run draws what an unbroken one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from diffusion.importance import LossSecondMoment, draw_fixstep
from diffusion.schedules import timesteps_of
from diffusion.times import DRAWS, Draw
from pipelines.building.process import Process
from utils.distributed import Ranks
from utils.hooks import Report
from utils.state import State

FIXED: Mapping[str, Draw] = {**DRAWS, "fixstep": draw_fixstep}


class TrainingTimes:
    """(step, num_steps) -> a function (n, generator) -> times (n,) and weights (n,)."""

    def __init__(self, process: Process, ranks: Ranks) -> None:
        self.process, self.ranks = process, ranks
        o, self.timesteps = process.options, timesteps_of(process.train_schedule)
        self.importance: LossSecondMoment | None = None
        if o.schedule_sampler == "lossaware":
            self.importance = LossSecondMoment(self.timesteps, bins=o.time_bins, device=ranks.device)
        self.draw: Draw = self.importance or FIXED[o.schedule_sampler]
        self.seen: list[tuple[Tensor, Tensor]] = []  # times and losses of the micro-batches of this step

    def __call__(self, step: int, num_steps: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        return partial(self.draw, t_max=self.process.t_max(step, num_steps), timesteps=self.timesteps)

    def saw(self, t: Tensor, loss: Tensor) -> None:
        """Losses (B,) of a micro-batch at times (B,), before they are weighted."""
        if self.importance is not None:
            self.seen.append((t.detach(), loss.detach().float()))

    def remember(self, state: State, report: Report) -> None:
        """A hook of every step, before anything is saved."""
        if self.importance is None:
            return
        # (micro, 2, B) of each rank -> (micro, rank, B): the order of the global batch
        mine = torch.stack([torch.stack(pair) for pair in self.seen])
        parts = self.ranks.gather(mine)  # (rank, micro, 2, B)
        times, losses = parts.permute(2, 1, 0, 3).flatten(1)
        self.importance.update(times, losses)
        self.seen = []

    def memory(self) -> dict[str, LossSecondMoment]:
        """What a checkpoint holds of it, by file."""
        return {} if self.importance is None else {"times": self.importance}

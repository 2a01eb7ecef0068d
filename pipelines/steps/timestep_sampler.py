"""Timestep sampling for training (--schedule_sampler): stratified, uniform, or by the loss of each timestep.

Importance sampling depends on the losses of the global batch: after each optimizer step the ranks gather them, so that
all of them keep the same state. Checkpoints hold it, so that a resumed run samples as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diffusion.importance_sampling import LossSecondMoment
from diffusion.schedules import num_timesteps
from diffusion.time_sampling import TIME_SAMPLERS, TimeSampler
from pipelines.builders.diffusion_process import DiffusionProcess
from utils.distributed import DistContext
from utils.hooks import StepResult
from utils.state import State


class TimestepSampler:
    """(step, num_steps) -> a function (n, generator) -> timesteps (n,) and importance weights (n,)."""

    def __init__(self, process: DiffusionProcess, dist: DistContext) -> None:
        self.process, self.dist = process, dist
        o, self.timesteps = process.options, num_timesteps(process.train_schedule)
        self.importance: LossSecondMoment | None = None
        if o.schedule_sampler == "lossaware":
            self.importance = LossSecondMoment(self.timesteps, bins=o.importance_bins, device=dist.device)
        self.sampler: TimeSampler = self.importance or TIME_SAMPLERS[o.schedule_sampler]
        self.recorded: list[tuple[Tensor, Tensor]] = []  # times and losses of the micro-batches of this step

    def __call__(self, step: int, num_steps: int) -> Callable[[int, torch.Generator], tuple[Tensor, Tensor]]:
        return partial(self.sampler, max_time=self.process.max_time(step, num_steps), timesteps=self.timesteps)

    def record_losses(self, t: Tensor, loss: Tensor) -> None:
        """Losses (B,) of a micro-batch at times (B,), without importance weights."""
        if self.importance is not None:
            self.recorded.append((t.detach(), loss.detach().float()))

    def sync_losses(self, state: State, report: StepResult) -> None:
        """A hook that runs after every step, before anything is saved."""
        if self.importance is None:
            return
        # (micro, 2, B) of each rank -> (micro, rank, B): the order of the global batch
        own = torch.stack([torch.stack(pair) for pair in self.recorded])
        gathered = self.dist.gather(own)  # (rank, micro, 2, B)
        times, losses = gathered.permute(2, 1, 0, 3).flatten(1)
        self.importance.update(times, losses)
        self.recorded = []

    def stateful(self) -> dict[str, LossSecondMoment]:
        """State to checkpoint, by file name."""
        return {} if self.importance is None else {"times": self.importance}

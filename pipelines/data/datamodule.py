"""What a latent space brings to diffusion training: its tokens, what a run keeps of it, and the step function."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from pipelines.data.batch_sampler import BatchPlan
from pipelines.data.tokens import TokenSplit
from pipelines.training.teacher import Teacher
from pipelines.training.training_times import TrainingTimes


class Step(Protocol):
    """(step, micro) -> losses (B,), and values to log; num_steps: of the whole run. plan: which rows it takes."""

    num_steps: int
    plan: BatchPlan

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]: ...


class Supply(Protocol):
    """One for each kind of space."""

    tokenizer: Any
    data: TokenSplit  # of the training split
    times: TrainingTimes  # which training looks at
    teacher: Teacher | None  # of a distillation

    def keep(self, folder: Path) -> None:
        """Save what a run folder needs beside its checkpoints. Called once, by the main rank, before training."""

    def facts(self, folder: Path) -> dict[str, Any]:
        """What args.json keeps of the space."""

    def open(self, *, measure: bool) -> None:
        """Make ready for training, by all ranks. measure: fill the statistics that a new run keeps."""

    def network(self) -> nn.Module:
        """The module whose gradients are averaged over ranks."""

    def step(self, network: nn.Module, split: str) -> Step:
        """The step function on "train", or on fixed rows of "valid". network: that of network(), perhaps wrapped."""

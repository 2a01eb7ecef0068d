"""Where a new run starts: at random weights, or at those of another run (--init_path), its teacher or --joint_run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.builders.joint import joint_weights, without_autoencoder
from pipelines.builders.models import DiffusionModel
from pipelines.cli.configs import DiffusionConfig
from pipelines.run_context import RunContext
from pipelines.steps.teacher import Teacher
from utils.checkpoints import Checkpoint
from utils.cli.settings import Settings
from utils.pretrained import read_checkpoint
from utils.state import State


def load_initial_checkpoint(
    settings: Settings[DiffusionConfig], teacher: Teacher | None, model: DiffusionModel
) -> Checkpoint | None:
    """The weights of the teacher, of --joint_run or of --init_path, for a new run; None for random weights."""
    teacher_run, path = settings.config.distillation.distill_run, settings.config.intervals.init_path
    if settings.config.joint.joint_run is not None:
        return joint_weights(model, settings.path("joint_run"))
    if teacher is not None and teacher_run is not None:
        found = Checkpoint({"model": teacher.weights}, {}, Path(teacher_run))
    elif path:
        best = settings.config.best.checkpoint == "best"
        found = read_checkpoint(Path(path), best, required=best)
    else:
        return None
    if model.space is not None:
        return found
    # a run of --joint_run holds its autoencoder, which is frozen here and comes from its copy
    return replace(found, tensors={**found.tensors, "model": without_autoencoder(found.tensors["model"])})


def take_optimizer(run: RunContext[DiffusionConfig], state: State, initial: Checkpoint) -> None:
    """With --init_optimizer: also take the moments of the optimizer and the averaged weights of a checkpoint.

    Learning rate, weight decay and betas are those of this run, whose schedule begins at step 0. Raises UserError where
    the checkpoint has no state of an optimizer, or that of another one.
    """
    state.take_optimizer(initial)
    optimizer = type(state.optimizer).__name__
    run.log(
        f"starts from step {initial.step} of {initial.path.parent.parent} with its averaged weights and the moments of "
        f"its {optimizer}; the learning rate follows this run's own schedule from step 0"
    )

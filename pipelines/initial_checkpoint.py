"""Where a new run starts: at random weights, or at those of another run (--init_path), its teacher or --joint_run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.best_checkpoint import checkpoint_of_denoiser
from pipelines.builders.joint import joint_weights, without_autoencoder
from pipelines.builders.models import DiffusionModel
from pipelines.cli.configs import DiffusionConfig
from pipelines.run_context import RunContext
from pipelines.steps.teacher import Teacher
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.pretrained import WeightsRead
from utils.state import State


def load_initial_checkpoint(
    run: RunContext[DiffusionConfig], teacher: Teacher | None, model: DiffusionModel
) -> Checkpoint | None:
    """The weights of the teacher, of --joint_run or of --init_path, for a new run; None for random weights.

    The run records which checkpoint was read.
    """
    settings = run.settings
    teacher_run, intervals = settings.config.distillation.distill_run, settings.config.intervals
    if settings.config.joint.joint_run is not None:
        found = checkpoint_of_denoiser(settings.path("joint_run"), settings)
        run.record_weights("joint_run", WeightsRead.of(found))
        return joint_weights(model, found)
    if teacher is not None and teacher_run is not None:
        found = Checkpoint({"model": teacher.weights}, {}, Path(teacher_run))
    elif intervals.init_path:
        # only the newest checkpoint holds the state of an optimizer
        is_newest = intervals.init_optimizer and settings.config.best.checkpoint is None
        path = settings.path("init_path")
        found = checkpoints.load(path) if is_newest else checkpoint_of_denoiser(path, settings)
        run.record_weights("init_path", WeightsRead.of(found))
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

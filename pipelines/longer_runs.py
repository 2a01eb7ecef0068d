"""Runs that are resumed with more --num_train_steps than they were started with.

A constant schedule goes on as it is. warmup_stable_decay goes back to the checkpoint before the learning rate fell, as
in Hu et al. 2024, arXiv:2404.06395, so that the longer run equals one of that length. Other schedules are computed anew
for the new length: their learning rate jumps, and one line says so.
"""

from __future__ import annotations

import os
import shutil

from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext
from utils import checkpoints
from utils.state import State

BEFORE_DECAY = "before_decay"  # folder in a run: the checkpoint before the learning rate of warmup_stable_decay fell
DECAYED = "decayed"  # folder in a run: checkpoints after it, of a run that was lengthened later


def is_lengthened(run: RunContext[TrainingConfig]) -> bool:
    """Whether --num_train_steps is larger than before."""
    before = run.settings.checkpoint_args.get("num_train_steps")
    return isinstance(before, int) and before < run.loop.num_train_steps


def go_back_before_decay(run: RunContext[TrainingConfig], step: int) -> bool:
    """If the run is lengthened and has the checkpoint before its decay: make that the newest. Every rank must call it.

    step: that of the newest checkpoint. Those after the decay move to decayed/. Returns whether it went back.
    """
    source = run.folder / BEFORE_DECAY
    found = checkpoints.newest(source) if is_lengthened(run) else None
    goes_back = found is not None and found["step"] < step
    if goes_back and run.dist.is_main:
        assert found is not None
        _move(run, found["step"])
        run.log(
            f"note: the run goes back from step {step} to step {found['step']}, before its learning rate fell; the "
            f"checkpoints after it are in {run.folder / DECAYED}"
        )
    run.dist.barrier()
    return goes_back


def _move(run: RunContext[TrainingConfig], step: int) -> None:
    """The copy comes first, complete or not at all: a kill in between leaves a run that can be resumed."""
    name, root, aside = f"step_{step:08d}", run.folder / "checkpoints", run.folder / DECAYED
    partial = root / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(run.folder / BEFORE_DECAY / "checkpoints" / name, partial)
    os.replace(partial, root / name)
    aside.mkdir(exist_ok=True)
    for place in root.glob("step_*"):
        if place.name.removeprefix("step_").isdigit() and int(place.name.removeprefix("step_")) > step:
            shutil.rmtree(aside / place.name, ignore_errors=True)
            os.replace(place, aside / place.name)


def say_what_changes(run: RunContext[TrainingConfig], state: State) -> None:
    """If --num_train_steps is another than before: take the learning rate of that schedule, and say what changes.

    A schedule that is flat at this step goes on without a seam: the run equals one of that length.
    """
    settings = run.settings
    before, now = settings.checkpoint_args.get("num_train_steps"), run.loop.num_train_steps
    if before is None or before == now:
        return
    old, new = state.schedule.apply_length()
    change = "the learning rate goes on as it was"
    if abs(new - old) > 1e-6 * max(abs(new), abs(old)):
        change = (
            f"the schedule {settings.config.optimizer.lr_schedule} is computed anew for {now} steps, so that the "
            f"learning rate goes from {old:.3g} to {new:.3g} at step {state.step}"
        )
    run.log(f"note: the run is extended from {before} to {now} steps: {change}")

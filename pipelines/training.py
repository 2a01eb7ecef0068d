"""The part that all training programs share: resume, train with evaluations and checkpoints, save, finish.

A program builds its data, model and step, then calls resume() and run_training().
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.cli.configs import TrainingConfig
from pipelines.run_context import RunContext, dataset_label
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.hooks import Hook, PeriodicHook
from utils.locks import release
from utils.loop import StepFn, train
from utils.preemption import EXIT_CODES
from utils.state import State


def resume(run: RunContext[TrainingConfig], state: State, check: Callable[[Checkpoint], None] | None = None) -> bool:
    """With --resume_training, restore the newest checkpoint of the run folder. Returns whether it did.

    check: called with the checkpoint before anything is restored; raises UserError if it does not fit the run.
    """
    if not run.settings.config.run.resume_training:
        return False
    checkpoint = checkpoints.load(run.folder)
    if check is not None:
        check(checkpoint)
    state.restore(checkpoint)
    return True


def run_training(
    run: RunContext[TrainingConfig],
    state: State,
    step: StepFn,
    *,
    started: float,
    save_every: int,
    hooks: Sequence[Hook] = (),
    evaluation: PeriodicHook | None = None,
    save_first: bool = False,
    **metadata: Any,
) -> int:
    """Train to the last step. Returns the exit code: 0 when done, else that of utils.preemption.

    Each step calls the hooks, then the evaluation and the checkpoint if they are due. The end of training always saves
    a checkpoint. Unless a signal ended it, the evaluation follows if it has not run at this step or is pending.

    started: time.monotonic() from which --max_seconds counts. save_every: steps between checkpoints. save_first:
    save before an evaluation at the same step; otherwise the checkpoint holds the result of the evaluation. metadata:
    entries of each checkpoint, added to those of the state.
    """
    settings, loop = run.settings, run.loop
    if state.step >= loop.num_train_steps:
        run.log(f"{run.folder} has already trained its {state.step} steps")
        reason = "done"
    else:
        run.log(
            f"training: {run.title}, {sum(p.numel() for p in state.parameters()):,} parameters, on "
            f"{dataset_label(settings)}, steps {state.step} to {loop.num_train_steps}, on {run.device}, into "
            f"{run.folder}"
        )
        saving = PeriodicHook(save_every, lambda state: state.save(run.folder, **metadata))
        evaluating = [] if evaluation is None else [evaluation]
        periodic = [saving, *evaluating] if save_first else [*evaluating, saving]
        reason = train(
            state,
            step,
            [run.logger, *hooks, *periodic],
            loop,
            clip_grad_norm=settings.config.optimizer.clip_grad_norm,
            autocast=run.autocast,
            global_batch=run.batch_sampler().global_batch_size,
            started=started,
        )
        state.save(run.folder, **metadata)
    release(run.folder)
    if reason != "done":
        run.log(
            f"stopped by {reason} at step {state.step} of {loop.num_train_steps}; saved. "
            f"Continue with --resume_training --resume_dir {run.folder}"
        )
    if EXIT_CODES[reason]:
        return EXIT_CODES[reason]
    if evaluation is not None:
        before = (list(state.pending), dict(state.best))
        evaluation.finish(state)
        if before != (state.pending, state.best):  # the last checkpoint must hold the changes by the evaluation
            state.save(run.folder, **metadata)
    if reason == "done":
        run.log(f"trained {state.step} steps; results are in {run.folder}")
    return 0


def progress_metrics(run: RunContext[TrainingConfig], num_examples: int) -> Callable[[int], dict[str, float]]:
    """step -> epoch and number of samples seen, to log. num_examples: number of examples in an epoch."""
    batch_size = run.batch_sampler().global_batch_size
    return lambda step: {"epoch": step * batch_size / num_examples, "samples": step * batch_size}

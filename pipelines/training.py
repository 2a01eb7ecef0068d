"""The part that all training programs share: resume, train with evaluations and checkpoints, save, finish.

A program builds its data, model and step, then calls resume() and run_training().

What a kill must not lose. A checkpoint precedes every evaluation and names it as pending; EVALUATED records that it was
made. A resumed run makes what is pending before its first step, and a run is finished when the checkpoint of its last
step has nothing pending.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.best_checkpoint import is_out_of_patience, validations_since_best
from pipelines.cli.configs import TrainingConfig
from pipelines.evaluation_share import EvaluationShare
from pipelines.finish import finish
from pipelines.longer_runs import BEFORE_DECAY, go_back_before_decay, say_what_changes
from pipelines.run_context import RunContext, dataset_label
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.cli.args_io import read_args
from utils.errors import UserError
from utils.hooks import Hook, PeriodicHook, StepResult
from utils.locks import release
from utils.loop import StepFn, train
from utils.malloc import GapsInMemory
from utils.preemption import EXIT_CODES, StopSignals
from utils.ranks import is_lost_connection
from utils.run_folder import write_json
from utils.state import State

EVALUATED = "evaluated.json"  # file of a run: the evaluation that was made since the checkpoint of a step, and its best


def resume(run: RunContext[TrainingConfig], state: State, check: Callable[[Checkpoint], None] | None = None) -> bool:
    """With --resume_training, restore the newest checkpoint of the run folder. Returns whether it did.

    check: called with the checkpoint before anything is restored; raises UserError if it does not fit the run.
    """
    if not run.settings.config.run.resume_training:
        return False
    checkpoint = checkpoints.load(run.folder)
    if check is not None:
        check(checkpoint)
    if go_back_before_decay(run, checkpoint.step):
        checkpoint = checkpoints.load(run.folder)
    state.restore(checkpoint)
    made = [name for name in state.pending if _is_evaluated(run.folder, state.step, name)]
    if made:
        state.pending = [name for name in state.pending if name not in made]
        state.best = _read_evaluated(run.folder)["best"]
    elif state.pending:  # half of the evaluation may be in the log
        run.logger.keep_bytes = checkpoint.metadata.get("log_bytes")
    say_what_changes(run, state)
    return True


def _read_evaluated(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads((folder / EVALUATED).read_text(encoding="utf-8"))
        if isinstance(found, dict) and isinstance(found.get("best"), dict) and isinstance(found.get("name"), str):
            return found
    return {}


def is_finished(folder: Path) -> bool:
    """Whether a training has made all its steps and what follows them: nothing is pending after its last checkpoint."""
    try:
        steps, newest = read_args(folder).get("num_train_steps"), checkpoints.newest(folder)
    except UserError:
        return False
    if newest is None or not isinstance(steps, int):
        return False
    pending = [name for name in newest.get("pending", ()) if not _is_evaluated(folder, newest["step"], name)]
    return (newest["step"] >= steps or newest.get("ended_by") is not None) and not pending


def _is_evaluated(folder: Path, step: int, name: str) -> bool:
    made = _read_evaluated(folder)
    return made.get("step") == step and made["name"] == name


def run_training(
    run: RunContext[TrainingConfig],
    state: State,
    step: StepFn,
    *,
    started: float,
    save_every: int,
    hooks: Sequence[Hook] = (),
    validation_losses: Hook | None = None,
    evaluation: PeriodicHook | None = None,
    evaluate_last: bool = True,
    interval_flag: str = "eval_every",
    **metadata: Any,
) -> int:
    """Train to the last step. Returns the exit code: 0 when done, else that of utils.preemption.

    Each step calls the hooks, the last of them that of the validation losses, whose time counts as that of evaluations
    (EvaluationShare); then it saves a checkpoint if that or the evaluation is due, and evaluates. The end of
    training always saves a checkpoint. Unless a signal ended it, the evaluation follows if it has not run at this step
    or is pending. Signals are recorded until all is saved.

    started: time.monotonic() from which --max_seconds counts. save_every: steps between checkpoints. evaluation: has a
    name, under which it is pending. evaluate_last: whether the last step is evaluated if it is no multiple of the
    interval. interval_flag: name of the flag of that interval, for a message. metadata: entries of each checkpoint,
    added to those of the state.
    """
    settings, loop = run.settings, run.loop
    saver = _Saver(run, state, evaluation, metadata, interval_flag)
    losses = () if validation_losses is None else (saver.share.measured(validation_losses),)
    with StopSignals() as stop, _leaving_together(run, stop):
        if saver.is_out_of_patience():
            reason = state.ended_by = "patience"
            run.log(f"{run.folder} has ended already; a larger --patience goes on: {saver.describe_patience()}")
            run.logger.cut_back(state)
        elif state.step >= loop.num_train_steps:
            reason = "done"
            run.log(f"{run.folder} has already trained its {state.step} steps{saver.describe_pending()}")
            run.logger.cut_back(state)
        else:
            run.log(
                f"training: {run.title}, {sum(p.numel() for p in state.parameters()):,} parameters, on "
                f"{dataset_label(settings)}, steps {state.step} to {loop.num_train_steps}, on {run.device}, into "
                f"{run.folder}"
            )
            saver.share.start()
            reason = train(
                state,
                step,
                [
                    *(run.logger, *hooks, *losses, _SaveAndEvaluate(saver, save_every)),
                    *(GapsInMemory(), run.logger.clock),
                ],
                loop,
                clip_grad_norm=settings.config.optimizer.clip_grad_norm,
                autocast=run.autocast,
                global_batch=run.batch_sampler().global_batch_size,
                started=started,
            )
            is_last = not EXIT_CODES[reason] or state.step >= loop.num_train_steps  # after a signal the run goes on
            if evaluation is not None and evaluate_last and is_last and not saver.is_evaluated():
                evaluation.postpone(state)
                saver.has_changed = True
            saver.save()
        if not EXIT_CODES[reason] and evaluation is not None and evaluation.name in state.pending:
            if saver.evaluate():
                saver.save()  # the last checkpoint holds the result, and nothing is pending
            elif stop.received:
                reason = stop.received
    release(run.folder)
    if reason == "patience":
        run.log(f"ended by --patience at step {state.step} of {loop.num_train_steps}: {saver.describe_patience()}")
    elif reason != "done":
        run.log(
            f"stopped by {reason} at step {state.step} of {loop.num_train_steps}; saved. "
            f"Continue with --resume_training --resume_dir {run.folder}"
        )
    else:
        run.log(f"trained {state.step} steps; results are in {run.folder}")
    is_done = reason in ("done", "patience")
    if evaluate_last or not is_done:
        finish(run, state.step, with_report=is_done)
    return EXIT_CODES[reason]


@contextmanager
def _leaving_together(run: RunContext[TrainingConfig], stop: StopSignals) -> Iterator[None]:
    """Context manager: an exchange with a rank that a signal has ended already is no error but the same end."""
    try:
        yield
    except Exception as error:
        if stop.received is None or not is_lost_connection(error):
            raise
        run.log(f"stopped by {stop.received}; a resumed run goes on from the last checkpoint in {run.folder}")
        raise SystemExit(EXIT_CODES[stop.received]) from None


class _Saver:
    """Saves checkpoints, and evaluates so that a kill at any moment loses neither steps nor an evaluation."""

    def __init__(
        self,
        run: RunContext[TrainingConfig],
        state: State,
        evaluation: PeriodicHook | None,
        metadata: Mapping[str, Any],
        interval_flag: str,
    ) -> None:
        assert evaluation is None or evaluation.name, "an evaluation has a name, under which it is pending"
        self.run, self.state, self.evaluation, self.metadata = run, state, evaluation, metadata
        self.has_changed = False  # since the last checkpoint
        self._evaluated_step: int | None = None
        interval = evaluation.interval if evaluation is not None else 1
        self.share = EvaluationShare(interval_flag, interval, run.loop.num_train_steps, log_every=run.loop.log_every)
        StopSignals.is_saved = bool(run.settings.config.run.resume_training)

    def save(self) -> None:
        """Save, unless nothing has changed since the last checkpoint."""
        if not self.has_changed:
            return
        run = self.run
        run.restore_folder()
        self.state.save(run.folder, log_bytes=run.logger.num_bytes(), **self.metadata)
        self.has_changed, StopSignals.is_saved = False, True

    def save_before_decay(self) -> None:
        """Save the checkpoint from which a run that is lengthened later goes on."""
        run = self.run
        self.state.save(run.folder / BEFORE_DECAY, keep=1, log_bytes=run.logger.num_bytes(), **self.metadata)

    def evaluate(self) -> bool:
        """Evaluate; record that it was made. Returns False if a signal interrupted it: then it is pending."""
        assert self.evaluation is not None
        with self.share.measure():
            done = self.evaluation.run(self.state)
        if not done:
            return False
        if advice := self.share.advice(self.state.step):
            self.run.log(advice)
        self._evaluated_step, self.has_changed = self.state.step, True
        self.state.ended_by = "patience" if self.is_out_of_patience() else None
        if self.run.dist.is_main:
            made = {"step": self.state.step, "name": self.evaluation.name, "best": self.state.best}
            write_json(self.run.folder / EVALUATED, made)
        return True

    def is_evaluated(self) -> bool:
        return self._evaluated_step == self.state.step

    def is_out_of_patience(self) -> bool:
        """Whether the validations that --patience allows have passed before the last step, and none is pending."""
        if self.evaluation is None or self.evaluation.name in self.state.pending:
            return False
        if self.state.step >= self.run.loop.num_train_steps:
            return False
        return is_out_of_patience(self.run.settings, self.state, self.evaluation.interval)

    def describe_patience(self) -> str:
        assert self.evaluation is not None
        best, count = self.state.best, validations_since_best(self.state, self.evaluation.interval)
        return f"{count} validations were no better than {best['metric']} {best['value']:.4g} of step {best['step']}"

    def describe_pending(self) -> str:
        if self.evaluation is not None and self.evaluation.name in self.state.pending:
            return ", and its last evaluation is made now"
        return "; a larger --num_train_steps extends it"


class _SaveAndEvaluate:
    """The hook that saves and evaluates. The checkpoint comes first, and names the evaluation as pending."""

    def __init__(self, saver: _Saver, save_every: int) -> None:
        assert save_every >= 1
        self.saver, self.save_every = saver, save_every

    def open(self, state: State) -> None:
        evaluation = self.saver.evaluation
        if evaluation is not None and evaluation.name in state.pending:
            self.saver.evaluate()

    def __call__(self, state: State, report: StepResult) -> None:
        self.saver.has_changed, StopSignals.is_saved = True, False
        evaluation = self.saver.evaluation
        evaluates = evaluation is not None and evaluation.is_due(state.step)
        if not evaluates and state.step % self.save_every and state.step != state.schedule.decay_start:
            return
        report.check()
        if evaluation is not None and evaluates:
            evaluation.postpone(state)
        if state.step == state.schedule.decay_start:
            self.saver.save_before_decay()
        if report.stopping:  # the training program saves
            return
        self.saver.save()
        if evaluates:
            self.saver.evaluate()


def progress_metrics(run: RunContext[TrainingConfig], num_examples: int) -> Callable[[int], dict[str, float]]:
    """step -> epoch and number of samples seen, to log. num_examples: number of examples in an epoch."""
    batch_size = run.batch_sampler().global_batch_size
    return lambda step: {"epoch": step * batch_size / num_examples, "samples": step * batch_size}

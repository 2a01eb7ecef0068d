"""Hooks run after every training step: the protocol (Hook), its input (StepResult), and the two that every run has.

PeriodicHook calls a function every n steps, such as saving or evaluating; Logger writes metrics and shows progress.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.distributed import DistContext
from utils.errors import UserError
from utils.finite import FirstNonFinite
from utils.preemption import Interrupted, interruptible
from utils.progress import ProgressBar
from utils.state import State
from utils.terminal import printable
from utils.trackers import Histogram, MetricsFile, Tracker


@dataclass
class StepResult:
    """Loss and logged values of one step. Tensors stay on the device until scalars() is called, which waits for it."""

    step: int  # steps done, this one included
    loss: Tensor  # scalar: this rank's part of the mean over the global batch
    values: dict[str, Tensor]  # scalars: likewise
    grad_norm: Tensor  # before clipping
    lr: float  # learning rate of this step
    dist: DistContext
    stopping: str | None = None  # the signal that was received, if any: periodic hooks are postponed
    may_skip: bool = False  # fp16 skips steps whose gradients overflow, so that their norm may be infinite
    non_finite: FirstNonFinite | None = None  # names the batch in the error of check()
    _scalars: dict[str, float] | None = None

    def scalars(self) -> dict[str, float]:
        """loss, grad_norm, learning_rate and the values, over all ranks, on the host. Every rank must call it."""
        if self._scalars is None:
            names = ["loss", *self.values]
            parts = torch.stack([self.loss.float(), *(v.float() for v in self.values.values())])
            numbers = self.dist.sum(parts).tolist()
            found = dict(zip(names, numbers, strict=True))
            self._scalars = {
                "loss": found.pop("loss"),
                "grad_norm": float(self.grad_norm),
                "learning_rate": self.lr,
                **found,
            }
        return self._scalars

    def check(self) -> None:
        """UserError if the loss or the gradient norm is nan or infinite. Every rank must call it."""
        scalars = self.scalars()
        names = ("loss",) if self.may_skip else ("loss", "grad_norm")
        bad = next((n for n in names if not abs(scalars[n]) < float("inf")), None)
        if bad is None:
            return
        step, batch = self.step, "with finite losses"
        found = None if self.non_finite is None else self.non_finite.found_on_any(self.dist)
        if found is not None:
            step, batch = found
        raise UserError(
            f"the {bad} is {scalars[bad]} at step {step} ({batch}): training stopped, no checkpoint was overwritten; "
            "resume the last checkpoint with a lower --clip_grad_norm or with --mixed_precision no, or train again "
            "with a lower --learning_rate"
        )


class Hook(Protocol):
    """Called after every step. May have open(state), called before the first step, and close(state), after the last.

    close is called after errors, too. A hook that sets modules to evaluation mode restores them (utils.train_eval).
    """

    def __call__(self, state: State, report: StepResult) -> None: ...


class PeriodicHook:
    """Calls fn(state) at each multiple of an interval, after checking that the loss is finite: fn may save.

    After a signal it does not call fn, since clusters grant only seconds; the training program saves.
    name: name of the call. A skipped call is recorded in state.pending under this name, and a resumed run makes it
    before its first step. None: skipped calls are not recorded.
    """

    def __init__(self, interval: int, fn: Callable[[State], None], *, name: str | None = None) -> None:
        assert interval >= 1
        self.interval, self.fn, self.name = interval, fn, name

    def is_due(self, step: int) -> bool:
        """Whether fn is called at a step."""
        return step % self.interval == 0

    def open(self, state: State) -> None:
        if self.name in state.pending:
            self.run(state)

    def __call__(self, state: State, report: StepResult) -> None:
        if not self.is_due(state.step):
            return
        report.check()
        if report.stopping:
            self.postpone(state)
        else:
            self.run(state)

    def postpone(self, state: State) -> None:
        """Record in state.pending that the call is due."""
        if self.name is not None and self.name not in state.pending:
            state.pending = [*state.pending, self.name]

    def run(self, state: State) -> bool:
        """Call fn now. Returns whether it ended; a call that a signal interrupted is recorded in state.pending."""
        try:
            with interruptible():
                self.fn(state)
        except Interrupted:
            self.postpone(state)
            return False
        state.pending = [name for name in state.pending if name != self.name]
        return True


class StepClock:
    """Optimizer steps per second since the last logged step. The last of the hooks: the time of the others, such as
    evaluations, does not count."""

    def __init__(self) -> None:
        self._step, self._began, self._idle = 0, time.monotonic(), 0.0
        self._paused: float | None = None

    def open(self, state: State) -> None:
        self._step, self._began, self._paused, self._idle = state.step, time.monotonic(), None, 0.0

    def pause(self) -> None:
        """Called by the first of the hooks, after its work."""
        self._paused = time.monotonic()

    def __call__(self, state: State, report: StepResult) -> None:
        if self._paused is not None:
            self._idle += time.monotonic() - self._paused

    def rate(self, step: int) -> float:
        """The rate up to this step, from which the next one counts."""
        now = time.monotonic()
        seconds = now - self._began - self._idle
        rate = (step - self._step) / seconds if seconds > 0 else 0.0
        self._step, self._began, self._idle = step, now, 0.0
        return float(f"{rate:.4g}")


class Logger:
    """Writes a line to metrics.jsonl and the trackers every n steps, and shows a progress bar. The first of the hooks.

    Other hooks log through record() and print().
    total: the last step. title: label of the progress bar. names: other names for logged values, such as
    {"loss": "train/loss"}. extra: step -> more values, such as the epoch.
    """

    def __init__(
        self,
        every: int,
        folder: Path | str,
        trackers: Sequence[Tracker] = (),
        *,
        total: int,
        title: str = "train",
        names: Mapping[str, str] | None = None,
        extra: Callable[[int], Mapping[str, float]] = lambda step: {},
    ):
        self.every, self.folder, self.total, self.title = every, Path(folder), total, title
        self.trackers, self.names, self.extra = list(trackers), dict(names or {}), extra
        self._file: MetricsFile | None = None
        self._bar: ProgressBar | None = None
        self._is_main = True
        self._start_time = time.monotonic()
        self.clock = StepClock()
        self.trained_steps: int | None = None  # of an evaluation: the step at which trackers show what it records at 0
        self.keep_bytes: int | None = None  # set by a resume: metrics.jsonl had this size when the checkpoint was saved

    def open(self, state: State) -> None:
        """Remove the lines of metrics.jsonl after the resumed step, and start the clock."""
        self._is_main, self._start_time = state.dist.is_main, time.monotonic()
        self._bar = ProgressBar(self.title, self.total, start=state.step, disable=not self._is_main)
        self.cut_back(state)

    def cut_back(self, state: State) -> None:
        """Remove the lines of metrics.jsonl that the run, at the step of the state, writes again."""
        self._is_main = state.dist.is_main
        self._file = MetricsFile(self.folder, state.step, self.keep_bytes) if self._is_main else None
        for tracker in self.trackers:
            tracker.cut_back(state.step)

    def __call__(self, state: State, report: StepResult) -> None:
        assert self._bar is not None, "train() opens its hooks"
        note = None
        if state.step % self.every == 0 or state.step == self.total:
            scalars = report.scalars()
            values = {self.names.get(name, name): value for name, value in scalars.items()}
            seconds = round(time.monotonic() - self._start_time, 3)
            rate = {"steps_per_second": self.clock.rate(state.step)}
            self.record({**values, **self.extra(state.step), "seconds": seconds, **rate}, state.step)
            note = f"loss {scalars['loss']:.4g}, grad_norm {scalars['grad_norm']:.3g}, lr {report.lr:.3g}"
        self._bar.advance_to(state.step, note)
        self.clock.pause()

    def record(self, values: Mapping[str, Any], step: int) -> None:
        """Write numbers to metrics.jsonl and every tracker."""
        if self._is_main:
            (self._file or MetricsFile(self.folder)).log(values, step)
            for tracker in self.trackers:
                tracker.log(values, self._shown_at(step))

    def histogram(self, name: str, histogram: Histogram, step: int) -> None:
        """Write a histogram to metrics.jsonl and every tracker."""
        if self._is_main:
            (self._file or MetricsFile(self.folder)).log_histogram(name, histogram, step)
            for tracker in self.trackers:
                tracker.log_histogram(name, histogram, self._shown_at(step))

    def configuration(self, values: Mapping[str, Any], part: str = "") -> None:
        """Store the configuration of the run in the trackers. part: that of an evaluation, such as "eval"."""
        if self._is_main:
            for tracker in self.trackers:
                tracker.store_init_configuration(values, part)

    def store_file(self, path: Path, name: str, step: int) -> None:
        """Store a file of the run folder, such as the report, in the trackers that keep files."""
        if self._is_main:
            for tracker in self.trackers:
                tracker.log_file(path, name, self._shown_at(step))

    def finish(self) -> None:
        """Close the trackers: what they hold is written, and nothing more is sent to them."""
        trackers, self.trackers = self.trackers, []
        for tracker in trackers:
            tracker.finish()

    def _shown_at(self, step: int) -> int:
        return step if self.trained_steps is None else self.trained_steps

    def num_bytes(self) -> int:
        """Size of metrics.jsonl now, to be saved with a checkpoint; 0 on other ranks."""
        return MetricsFile(self.folder).num_bytes() if self._is_main else 0

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Send a table, such as sample texts, to the trackers that show tables."""
        if self._is_main:
            for tracker in self.trackers:
                tracker.log_table(name, columns, rows, self._shown_at(step))

    def print(self, text: str) -> None:
        """Print a line on rank 0, above the progress bar."""
        text = printable(text)  # it may contain the names of files, classes and runs
        if self._bar:
            self._bar.log(text)
        elif self._is_main:
            print(text, file=sys.stderr)

    def close(self, state: State) -> None:
        """End the progress bar. The trackers stay open, since an evaluation may follow."""
        if self._bar:
            self._bar.advance_to(state.step)
            self._bar.close()

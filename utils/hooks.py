"""What follows a step: what hooks are told (Report), what they are (Hook), and the two that every training has.

Every does a deed at an interval, such as saving or evaluating; Log writes down how training goes.
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

from utils.distributed import Ranks
from utils.errors import UserError
from utils.progress import Progress
from utils.state import State
from utils.stop import GaveWay, may_be_left
from utils.trackers import MetricsFile, Tracker


@dataclass
class Report:
    """What one step was like. Tensors stay on the device until scalars() is asked for: that waits."""

    step: int  # steps done, this one included
    loss: Tensor  # scalar: this rank's part of the mean over the global batch
    values: dict[str, Tensor]  # scalars: likewise
    grad_norm: Tensor  # before clipping
    lr: float  # that this step used
    ranks: Ranks
    stopping: str | None = None  # the signal that was received: long deeds are left for later
    skips: bool = False  # fp16 skips steps whose gradients overflow: their norm may be infinite
    _scalars: dict[str, float] | None = None

    def scalars(self) -> dict[str, float]:
        """loss, grad_norm, learning_rate and the values, over all ranks. Every rank must ask. Waits for the device."""
        if self._scalars is None:
            names = ["loss", *self.values]
            parts = torch.stack([self.loss.float(), *(v.float() for v in self.values.values())])
            numbers = self.ranks.sum(parts).tolist()
            found = dict(zip(names, numbers, strict=True))
            self._scalars = {
                "loss": found.pop("loss"),
                "grad_norm": float(self.grad_norm),
                "learning_rate": self.lr,
                **found,
            }
        return self._scalars

    def check(self) -> None:
        """UserError if the loss or the gradients are no longer numbers."""
        scalars = self.scalars()
        names = ("loss",) if self.skips else ("loss", "grad_norm")
        bad = next((n for n in names if not abs(scalars[n]) < float("inf")), None)
        if bad:
            raise UserError(
                f"the {bad} is {scalars[bad]} at step {self.step}: training stopped and nothing was saved over; resume "
                f"the last checkpoint with a lower --clip_grad_norm or with --mixed_precision no, or train anew with a "
                f"lower --learning_rate"
            )


class Hook(Protocol):
    """Called after every step. May have open(state), called before the first, and close(state), after the last.

    close is called however training ends. A hook that sets modules to evaluation mode sets them back (utils.modes).
    """

    def __call__(self, state: State, report: Report) -> None: ...


class Every:
    """Does a deed at each multiple of an interval, after checking that the loss is a number: it may save.

    After a signal it does nothing, since clusters give seconds: the caller saves. name: of a deed that a resumed run is
    to make up for then, before its first step. last: one more step to do it at.
    """

    def __init__(
        self, interval: int, deed: Callable[[State], None], *, name: str | None = None, last: int | None = None
    ):
        assert interval >= 1
        self.interval, self.deed, self.name, self.last = interval, deed, name, last

    def open(self, state: State) -> None:
        if self.name in state.owed:
            self._do(state)

    def __call__(self, state: State, report: Report) -> None:
        if state.step % self.interval and state.step != self.last:
            return
        report.check()
        if not report.stopping:
            self._do(state)
        elif self.name is not None:
            state.owed = [*state.owed, self.name]

    def at_end(self, state: State) -> None:
        """Once training is over: at the last step, too, and what is still owed."""
        if state.step % self.interval or self.name in state.owed:
            self._do(state)

    def _do(self, state: State) -> None:
        others = [name for name in state.owed if name != self.name]
        try:
            with may_be_left():
                self.deed(state)
            state.owed = others
        except GaveWay:
            state.owed = [*others, *([self.name] if self.name is not None else [])]


class Log:
    """Every so many steps a line in metrics.jsonl and the trackers; in between, a line of progress.

    Other hooks record their own numbers through record() and say(). To be the first among the hooks.
    total: the last step. title: of the line of progress. names: other names for what is logged, such as
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
        self._bar: Progress | None = None
        self._main = True
        self._began = time.monotonic()

    def open(self, state: State) -> None:
        """Cut metrics.jsonl back to the step that is resumed, and start the clock."""
        self._main, self._began = state.ranks.main, time.monotonic()
        self._bar = Progress(self.title, self.total, start=state.step, quiet=not self._main)
        self._file = MetricsFile(self.folder, state.step) if self._main else None

    def __call__(self, state: State, report: Report) -> None:
        assert self._bar is not None, "train() opens its hooks"
        note = None
        if state.step % self.every == 0 or state.step == self.total:
            scalars = report.scalars()
            values = {self.names.get(name, name): value for name, value in scalars.items()}
            seconds = round(time.monotonic() - self._began, 3)
            self.record({**values, **self.extra(state.step), "seconds": seconds}, state.step)
            note = f"loss {scalars['loss']:.4g}, grad_norm {scalars['grad_norm']:.3g}, lr {report.lr:.3g}"
        self._bar.at(state.step, note)

    def record(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers into metrics.jsonl and every tracker."""
        if self._main:
            for tracker in (self._file or MetricsFile(self.folder), *self.trackers):
                tracker.log(values, step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Sample texts and the like, for the trackers that show tables."""
        if self._main:
            for tracker in self.trackers:
                tracker.table(name, columns, rows, step)

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        if self._bar:
            self._bar.say(text)
        elif self._main:
            print(text, file=sys.stderr)

    def close(self, state: State) -> None:
        """End the line of progress. The trackers stay open: an evaluation may follow."""
        if self._bar:
            self._bar.at(state.step)
            self._bar.close()

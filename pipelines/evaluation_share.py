"""The share of a training's time that its evaluations take: above a tenth, one line says which flag changes it.

The intervals of the recipes are meant for any machine, but the time of an evaluation (beam search, a scorer) and that
of training do not grow alike from a laptop to a fast GPU. Validation losses, computed at log lines, count as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from utils.hooks import Hook, StepResult
from utils.state import State

LARGEST_SHARE = 0.1  # seconds of evaluations for each second of training
MIN_SECONDS = 60.0  # of evaluations, below which nothing is said


@dataclass
class _Kind:
    """Evaluations of one kind."""

    title: str
    flag: str  # name of the flag whose value is the interval
    interval: int  # in steps
    seconds: float = 0.0


class EvaluationShare:
    """Seconds of evaluations, of validation losses and of training in this process, from the start of training on."""

    def __init__(
        self,
        flag: str,
        interval: int,
        num_steps: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        log_every: int = 1,
    ) -> None:
        """flag: name of the flag whose value is the interval, in steps. num_steps: of the whole training.

        log_every: interval of the validation losses.
        """
        self.num_steps, self.clock = num_steps, clock
        self.evaluations = _Kind("evaluations", flag, interval)
        self.losses = _Kind("validation losses", "log_every", log_every)
        self.training = 0.0  # seconds
        self._since: float | None = None  # end of the last evaluation, or the start of training
        self._said = False

    def start(self) -> None:
        """Training starts, or goes on."""
        self._since = self.clock()

    @contextmanager
    def measure(self, *, losses: bool = False) -> Iterator[None]:
        """Context manager: an evaluation, or validation losses."""
        kind, began = self.losses if losses else self.evaluations, self.clock()
        if self._since is not None:
            self.training += began - self._since
        try:
            yield
        finally:
            self._since = self.clock()
            kind.seconds += self._since - began

    def measured(self, hook: Hook) -> Hook:
        """A hook that computes validation losses, whose time counts."""

        def call(state: State, report: StepResult) -> None:
            with self.measure(losses=True):
                hook(state, report)

        return call

    def advice(self, step: int) -> str | None:
        """The line to print after an evaluation at this step, once; None if there is nothing to say."""
        allowed = LARGEST_SHARE * self.training
        kinds = sorted((self.evaluations, self.losses), key=lambda kind: -kind.seconds)
        total = sum(kind.seconds for kind in kinds)
        if self._said or not self.training or step >= self.num_steps:
            return None
        if total < MIN_SECONDS or total <= allowed:
            return None
        self._said = True
        larger, smaller = kinds
        if smaller.seconds <= allowed / 2:  # the larger one fits into what it leaves
            flags = [self._flag(larger, larger.seconds / (allowed - smaller.seconds))]
        else:
            flags = [self._flag(kind, total / allowed) for kind in kinds]
        shown = [kind for kind in kinds if kind is larger or round(kind.seconds)]
        taken = [f"{kind.title} have taken {kind.seconds:,.0f} s" for kind in shown]
        makes = "makes" if len(flags) == 1 else "make"
        spent = f"{', '.join(taken)} and training {self.training:,.0f} s"
        return f"note: {spent}: {' '.join(flags)} {makes} them a tenth of it"

    def _flag(self, kind: _Kind, factor: float) -> str:
        """The flag with an interval that is so many times as long, of two digits, rounded up."""
        enough = kind.interval * factor
        digit = 10 ** max(0, len(str(int(enough))) - 2)
        steps = min(self.num_steps, digit * -int(-enough // digit))
        return f"--{kind.flag} {steps} (now {kind.interval})"

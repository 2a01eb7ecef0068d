"""The share of a training's time that its evaluations take: above a tenth, one line says which flag changes it.

The intervals of the recipes are meant for any machine, but the time of an evaluation (beam search, a scorer) and that
of training do not grow alike from a laptop to a fast GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LARGEST_SHARE = 0.1  # seconds of evaluations for each second of training
MIN_SECONDS = 60.0  # of evaluations, below which nothing is said


class EvaluationShare:
    """Seconds of evaluations and of training in this process, from the first evaluation on."""

    def __init__(self, flag: str, interval: int, num_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        """flag: name of the flag whose value is the interval, in steps. num_steps: of the whole training."""
        self.flag, self.interval, self.num_steps, self.clock = flag, interval, num_steps, clock
        self.evaluating = self.training = 0.0  # seconds
        self._since: float | None = None  # end of the last evaluation, or the start of training
        self._said = False

    def start(self) -> None:
        """Training starts, or goes on."""
        self._since = self.clock()

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Context manager: an evaluation."""
        began = self.clock()
        if self._since is not None:
            self.training += began - self._since
        try:
            yield
        finally:
            self._since = self.clock()
            self.evaluating += self._since - began

    def advice(self, step: int) -> str | None:
        """The line to print after an evaluation at this step, once; None if there is nothing to say."""
        allowed = LARGEST_SHARE * self.training
        if self._said or not self.training or step >= self.num_steps:
            return None
        if self.evaluating < MIN_SECONDS or self.evaluating <= allowed:
            return None
        self._said = True
        # of two digits, rounded up
        enough = self.interval * self.evaluating / allowed
        digit = 10 ** max(0, len(str(int(enough))) - 2)
        steps = min(self.num_steps, digit * -int(-enough // digit))
        return (
            f"note: evaluations have taken {self.evaluating:,.0f} s and training {self.training:,.0f} s: "
            f"--{self.flag} {steps} (now {self.interval}) makes them a tenth of it"
        )

"""Reasons to stop training: all steps are done, time is up, or a signal came. All ranks stop at the same step."""

from __future__ import annotations

import time

from utils.options import LoopOptions
from utils.preemption import SIGNALS, StopSignals
from utils.state import State

_AGREE_STEPS = 10  # the most steps between agreements of the ranks on stopping, since their hosts wait for each other
_AGREE_SECONDS = 2.0  # slow steps agree more often: torchrun ends its processes 30 seconds after SIGTERM


class StopAgreement:
    """After every step: the reason to stop, or None; the same on all ranks, since a rank that continued would hang."""

    def __init__(self, state: State, stop: StopSignals, started: float, options: LoopOptions) -> None:
        """started: time.monotonic() from which options.max_seconds counts."""
        self.state, self.stop, self.started, self.options = state, stop, started, options
        self._steps, self._next, self._since = 0, 1, time.monotonic()

    def __call__(self) -> str | None:
        options, state = self.options, self.state
        late = options.max_seconds is not None and time.monotonic() - self.started >= options.max_seconds
        mine = self.stop.received or ("time" if late else None)
        if state.dist.world_size == 1:
            return mine
        self._steps += 1
        if self._steps < self._next and state.step < options.num_train_steps:
            return None
        # the slowest rank decides how many steps pass until the next agreement, so that it is the same on all of them
        order = (None, "time", *reversed(SIGNALS))
        seconds = (time.monotonic() - self._since) / self._steps
        reason, micros = state.dist.max_of([order.index(mine), int(seconds * 1e6)])
        self._next = max(1, min(_AGREE_STEPS, int(_AGREE_SECONDS * 1e6 / max(micros, 1))))
        self._steps, self._since = 0, time.monotonic()
        return order[reason]

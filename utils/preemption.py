"""Reasons to stop training: all steps are done, time is up, or a signal came. All ranks stop at the same step."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

import torch

from utils.options import LoopOptions
from utils.state import State

EXIT_CODES = {"done": 0, "time": 0, "SIGTERM": 143, "SIGINT": 130}
_AGREE_EVERY = 10  # steps between agreements of the ranks on stopping, since their hosts wait for each other then


class Interrupted(Exception):
    """A long operation was abandoned because of a signal."""


class StopSignals:
    """Records SIGTERM and SIGINT instead of ending the process: `with StopSignals() as stop: ... stop.received`.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python allows no handlers, it records nothing.
    """

    active: ClassVar[StopSignals | None] = None  # the instance that records signals now
    is_interruptible: ClassVar[bool] = False  # whether the code that runs now may be abandoned

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            StopSignals.active = self
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._record)
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        print(f"\n{self.received}: finishing this step, then stopping{hint}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        StopSignals.active = None
        for number, before in self._before.items():
            signal.signal(number, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Context manager: inside it check_interrupt may raise Interrupted, which the caller handles.

    Training steps run outside it and are always finished.
    """
    before, StopSignals.is_interruptible = StopSignals.is_interruptible, True
    try:
        yield
    finally:
        StopSignals.is_interruptible = before


def check_interrupt() -> None:
    """Raise Interrupted if a signal came, within interruptible(). Long loops poll this: clusters grant only seconds.

    With several processes it never raises, since all of them would have to stop together.
    """
    stop = StopSignals.active
    dist = torch.distributed
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    if stop is not None and stop.received and alone and StopSignals.is_interruptible:
        raise Interrupted


def stop_reason(state: State, stop: StopSignals, started: float, options: LoopOptions) -> str | None:
    """The reason to stop after this step, or None; the same on all ranks, since a rank that continued would hang."""
    late = options.max_seconds is not None and time.monotonic() - started >= options.max_seconds
    mine = stop.received or ("time" if late else None)
    if state.dist.world_size == 1:
        return mine
    if state.step % _AGREE_EVERY and state.step < options.num_train_steps:
        return None
    order = (None, "time", "SIGINT", "SIGTERM")
    return order[state.dist.max(order.index(mine))]

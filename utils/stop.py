"""Why and when training ends: all steps done, no time left, or a signal; noted, and agreed on by all ranks."""

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
_AGREE_EVERY = 10  # steps between the ranks' agreements on stopping: their hosts wait for each other


class GaveWay(Exception):
    """A long deed was left, since a signal came."""


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying of them: `with StopSignals() as stop: ... stop.received`.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python allows no handlers, it notes nothing.
    """

    listening: ClassVar[StopSignals | None] = None  # the one that notes signals now
    leaving: ClassVar[bool] = False  # whether a deed is under way that may be left

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            StopSignals.listening = self
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        print(f"\n{self.received}: finishing this step, then stopping{hint}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        StopSignals.listening = None
        for number, before in self._before.items():
            signal.signal(number, before)


@contextmanager
def may_be_left() -> Iterator[None]:
    """What is done within may end by GaveWay, which the caller is ready for. A training step is not: it is finished."""
    before, StopSignals.leaving = StopSignals.leaving, True
    try:
        yield
    finally:
        StopSignals.leaving = before


def give_way() -> None:
    """GaveWay if a signal came within may_be_left: long deeds ask again and again, since clusters give seconds.

    Several processes would have to agree on it, so there each deed is done to its end.
    """
    stop = StopSignals.listening
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if stop is not None and stop.received and alone and StopSignals.leaving:
        raise GaveWay


def reason_to_stop(state: State, stop: StopSignals, started: float, options: LoopOptions) -> str | None:
    """Why to stop after this step; the ranks agree on it, or one would wait for the others for ever."""
    late = options.max_seconds is not None and time.monotonic() - started >= options.max_seconds
    mine = stop.received or ("time" if late else None)
    if state.ranks.world == 1:
        return mine
    if state.step % _AGREE_EVERY and state.step < options.num_train_steps:
        return None
    order = (None, "time", "SIGINT", "SIGTERM")
    return order[state.ranks.largest(order.index(mine))]

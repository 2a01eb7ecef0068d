"""Signals that stop training, and what may be abandoned because of one.

    SIGTERM   schedulers, `kill`, torchrun when another process fails; 30 seconds later torchrun sends SIGKILL
    SIGHUP    a terminal or an ssh connection that closed; under nohup it stays ignored
    SIGUSR1   Slurm's --signal=USR1@120, two minutes before the time limit
    SIGINT    Ctrl-C

Each finishes the step, saves and exits with 128 + its number. Other signals, such as SIGUSR2, keep their meaning.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

import torch

from utils import heartbeat

SIGNALS = tuple(name for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT") if hasattr(signal, name))
EXIT_CODES = {"done": 0, "time": 0, "patience": 0, **{name: 128 + getattr(signal, name) for name in SIGNALS}}


class Interrupted(Exception):
    """A long operation was abandoned because of a signal."""


class StopSignals:
    """Records the SIGNALS instead of ending the process: `with StopSignals() as stop: ... stop.received`.

    Inside another one it is the same as that one: whoever opens the outermost decides when signals get their old
    meaning back, such as after the last checkpoint is on disk. A second Ctrl-C interrupts at once; any other signal
    that is repeated changes nothing. SIGHUP that is ignored (nohup) stays ignored. Outside the main thread, where
    Python allows no handlers, it records nothing.
    """

    active: ClassVar[StopSignals | None] = None  # the instance that records signals now
    is_interruptible: ClassVar[bool] = False  # whether the code that runs now may be abandoned
    is_saved: ClassVar[bool] = False  # whether a checkpoint holds everything, so that this process may end at once

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if StopSignals.active is not None:
            return StopSignals.active
        if threading.current_thread() is threading.main_thread():
            StopSignals.active = self
            for number in (getattr(signal, name) for name in SIGNALS):
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._record)
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        first = self.received is None
        self.received = signal.Signals(number).name
        if self.received == "SIGHUP":
            _silence_dead_terminals()
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        if (first or hint) and os.environ.get("RANK", "0") == "0":
            _write_stderr(f"\n{self.received}: finishing this step, then saving and stopping{hint}\n")

    def __exit__(self, *_: object) -> None:
        if StopSignals.active is not self:
            return
        StopSignals.active, StopSignals.is_saved = None, False
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}


def _write_stderr(text: str) -> None:
    """Write to standard error from a signal handler, where print() fails if the signal came inside another print()."""
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "replace"))


def _silence_dead_terminals() -> None:
    """Point standard output and error to /dev/null where their terminal is gone: a message must not end the run."""
    for handle in (1, 2):
        try:
            os.write(handle, b"")
        except OSError:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, handle)
                os.close(null)


@contextmanager
def exit_on_termination() -> Iterator[None]:
    """Context manager: SIGTERM and SIGHUP raise SystemExit with 128 + their number, so that files are closed.

    SIGHUP that is ignored (nohup) stays ignored. Outside the main thread it changes nothing.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    taken = [n for n in numbers if is_main and signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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

    With several processes, which would all have to go on together, it exits instead, with the code of the signal, and
    only where a checkpoint holds everything (StopSignals.is_saved): the launcher ends the other processes.
    It is also a sign of life for ranks that wait for this one (utils.heartbeat).
    """
    heartbeat.beat()
    stop = StopSignals.active
    if stop is None or not stop.received or not StopSignals.is_interruptible:
        return
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        raise Interrupted
    if StopSignals.is_saved:
        if dist.get_rank() == 0:
            _write_stderr(f"stopped by {stop.received} during an evaluation, which a resumed run makes up for\n")
        raise SystemExit(EXIT_CODES[stop.received])

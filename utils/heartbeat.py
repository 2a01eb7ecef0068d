"""Signs of life of the ranks, so that one that hangs is noticed in minutes while the others wait for it.

A rank that has ended closes its connections, which the others notice at once; one that hangs keeps them open. So each
rank counts up a number in the store of the process group while it makes progress: loops call beat(), as does every
check_interrupt() and every progress bar; work without a loop runs inside beating(), which beats from a thread for a
limited time. A rank that waits for others (DistContext.barrier) reads the numbers of those that are missing.

Seconds of silence are by the clock of the reader: clocks of machines differ. Imports no torch.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from utils.errors import UserError

TIMEOUT = 600.0  # seconds of silence after which a rank counts as hanging
VARIABLE = "HEARTBEAT_TIMEOUT"  # environment variable with another number of seconds
# of the timeout: time between two beats of a rank, between two looks of a waiting rank, and until it prints a line
EVERY, LOOK, NOTE = 1 / 60, 1 / 20, 1 / 5
FIRST_LOOK = 1.0  # seconds; shorter waits cost no message to the store
LONGEST_WORK = 3600.0  # seconds for which beating() beats: work that hangs is noticed, too


class Heartbeat:
    """The beats of this rank, and what it knows of the others."""

    def __init__(self, store: Any, rank: int, world_size: int, timeout: float = TIMEOUT, name: str = "") -> None:
        """store: of the process group (torch.distributed.Store). timeout: seconds. name: before its keys."""
        self.store, self.rank, self.world_size, self.timeout, self.name = store, rank, world_size, timeout, name
        self.every = timeout * EVERY
        self.waits = 0  # number of waits that this rank has begun
        self._published, self._next = 0, 0.0

    def beat(self) -> None:
        """Count up, unless this rank did so a moment ago."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self.every
            with suppress(RuntimeError):  # without a store nobody reads it, and the next exchange fails
                self.store.add(f"{self.name}beat/{self.rank}", 1)

    def wait(self) -> Wait:
        """Begin to wait for the other ranks, which all do so in one order."""
        self.waits += 1
        return Wait(self, self.waits)

    def publish_wait(self, number: int) -> None:
        """Tell the others that this rank has begun its wait of this number."""
        if number > self._published:
            self.store.add(f"{self.name}wait/{self.rank}", number - self._published)
            self._published = number

    def missing(self, number: int) -> list[int]:
        """The ranks that have not published a wait of this number."""
        others = (rank for rank in range(self.world_size) if rank != self.rank)
        return [rank for rank in others if self.store.add(f"{self.name}wait/{rank}", 0) < number]

    def beats(self, rank: int) -> int:
        """The number of beats of a rank."""
        return int(self.store.add(f"{self.name}beat/{rank}", 0))


class Wait:
    """One wait of this rank for the others: look() now and then until it is over."""

    def __init__(self, heartbeat: Heartbeat, number: int) -> None:
        self.heartbeat, self.number = heartbeat, number
        self._next = time.monotonic() + min(FIRST_LOOK, heartbeat.timeout * LOOK)
        self._seen: dict[int, tuple[int, float]] = {}  # rank -> its number of beats, and since when it has been that
        self._noted = False

    def look(self) -> None:
        """Look at the missing ranks, if it is time to.

        Prints one line when all of them have been silent for a while. Raises UserError after the timeout.
        """
        now, heartbeat = time.monotonic(), self.heartbeat
        if now < self._next:
            return
        self._next = now + heartbeat.timeout * LOOK
        try:
            heartbeat.publish_wait(self.number)
            missing = heartbeat.missing(self.number)
            beats = {rank: heartbeat.beats(rank) for rank in missing}
        except RuntimeError:  # the store has ended with its process: the exchange itself fails, too
            return
        for rank, number in beats.items():
            if self._seen.get(rank, (-1, now))[0] != number:
                self._seen[rank] = number, now
        silence = {rank: now - self._seen[rank][1] for rank in missing}
        if not missing or min(silence.values()) < NOTE * heartbeat.timeout:
            return
        shown = ", ".join(f"rank {rank} ({_duration(seconds)})" for rank, seconds in silence.items())
        if min(silence.values()) >= heartbeat.timeout:
            global _gave_up
            _gave_up = True
            raise UserError(
                f"no sign of life of {shown}, for which the other ranks wait: it hangs; end it and resume the run "
                f"with --resume_training. Where it only works for long, set {VARIABLE} to more seconds than "
                f"{heartbeat.timeout:g}"
            )
        # the first of the waiting ranks speaks for all
        if not self._noted and heartbeat.rank == min(set(range(heartbeat.world_size)) - set(missing)):
            self._noted = True
            print(
                f"note: no sign of life of {shown}, for which the other ranks wait; after "
                f"{_duration(heartbeat.timeout)} of silence they end",
                file=sys.stderr, flush=True,
            )  # fmt: skip


_gave_up = False  # whether a wait has ended with the error


@atexit.register
def _end_without_the_others() -> None:
    """After that error: end now. Else the group would wait, as it is destroyed, for the rank that hangs."""
    if _gave_up:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(2)  # as after every UserError


_joined: Heartbeat | None = None  # of this process, if it is one of several
_numbers = count()  # of groups that this process has joined: later ones have other keys


def join(store: Any, rank: int, world_size: int) -> None:
    """This process is one of several, and beats from now on. Raises UserError if HEARTBEAT_TIMEOUT is no number."""
    global _joined
    text = os.environ.get(VARIABLE, "")
    try:
        timeout = float(text) if text else TIMEOUT
    except ValueError:
        timeout = 0.0
    if not 0 < timeout < float("inf"):
        raise UserError(f"{VARIABLE}={text}: give seconds, above 0, or leave it out for {TIMEOUT:g}")
    _joined = Heartbeat(store, rank, world_size, timeout, f"heartbeat/{next(_numbers)}/")


def leave() -> None:
    """The process group ends, or there is none."""
    global _joined
    _joined = None


def beat() -> None:
    """This rank makes progress. Cheap: loops call it at every turn. In a single process it does nothing."""
    if _joined is not None:
        _joined.beat()


def wait() -> Wait | None:
    """Begin to wait for the other ranks; None in a single process."""
    return None if _joined is None else _joined.wait()


@contextmanager
def beating(longest: float = LONGEST_WORK) -> Iterator[None]:
    """Context manager: a thread beats while its body runs, for work without a loop that could call beat().

    longest: seconds after which the thread ends, so that work that hangs is noticed in the end. A body that holds the
    lock of the interpreter for ever is noticed as any rank that hangs.
    """
    if _joined is None:
        yield
        return
    heartbeat, done, end = _joined, threading.Event(), time.monotonic() + longest

    def run() -> None:
        heartbeat.beat()
        while not done.wait(heartbeat.every) and time.monotonic() < end:
            heartbeat.beat()

    threading.Thread(target=run, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.3g} s"

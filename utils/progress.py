"""How far a stage is: rate and time to go, as one moving line in a terminal, as a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import TextIO

TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, s = divmod(round(max(seconds, 0)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Progress:
    """`with Progress("encode", total) as bar: bar.advance(n, "loss 0.3")`. unit: what is counted, in the singular."""

    def __init__(
        self,
        name: str,
        total: int,
        *,
        start: int = 0,
        unit: str = "step",
        file: TextIO | None = None,
        quiet: bool = False,
    ):
        self.name, self.total, self.unit, self.done = name, total, unit, start
        self.file = file or sys.stderr
        self.quiet = quiet
        self.note = ""
        self._start, self._began = start, time.monotonic()
        self._moving = self.file.isatty()
        self._shown_at = self._began if not self._moving else 0.0
        self._width = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.at(self.done + count, note)

    def at(self, done: int, note: str | None = None) -> None:
        """Be at `done` of the total; show it when it is time to."""
        self.done = done
        if note is not None:
            self.note = note
        if done >= self.total and not self._moving:
            return  # close() says it, once
        now = time.monotonic()
        if now - self._shown_at >= (TERMINAL_SECONDS if self._moving else FILE_SECONDS):
            self._shown_at = now
            self._show(self.line())

    def line(self) -> str:
        seconds = time.monotonic() - self._began
        rate = (self.done - self._start) / seconds if seconds > 0 else 0.0
        share = f"{100 * self.done // self.total:3d}%" if self.total else "100%"
        parts = [f"{self.name}: {share} {self.done}/{self.total}"]
        if rate > 0:
            pace = f"{rate:.1f} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}"
            parts += [pace, f"{duration(seconds)} gone, {duration((self.total - self.done) / rate)} to go"]
        return ", ".join(parts + ([self.note] if self.note else []))

    def say(self, text: str) -> None:
        """A line of its own, above the moving one."""
        if self.quiet:
            return
        self._clear()
        print(text, file=self.file, flush=True)

    def close(self) -> None:
        """Show the last state once and leave it standing."""
        if not self.quiet:
            self._clear()
            print(self.line(), file=self.file, flush=True)
        self.quiet = True

    def _show(self, line: str) -> None:
        if self.quiet:
            return
        if self._moving:
            print("\r" + line.ljust(self._width), end="", file=self.file, flush=True)
            self._width = len(line)
        else:
            print(line, file=self.file, flush=True)

    def _clear(self) -> None:
        if self._moving and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self.file, flush=True)
            self._width = 0

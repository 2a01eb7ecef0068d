"""Progress bars by tqdm: rate and time left, as one moving line in a terminal, as a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0  # between two displays
_FILE_FORMAT = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):
    """`with ProgressBar("encode", total) as bar: bar.advance(n, "loss 0.3")`. unit: what is counted, in the singular.

    In a file each display is a line of its own, where tqdm would write one endless line of carriage returns.
    start: steps that an earlier run did, which do not count in the rate. disable: show nothing.
    """

    monitor_interval = 0  # no thread that wakes up idle bars
    disable: bool

    def __init__(
        self,
        name: str,
        total: int,
        *,
        start: int = 0,
        unit: str = "step",
        file: TextIO | None = None,
        disable: bool = False,
    ) -> None:
        self._file = file or sys.stderr
        self._interactive = self._file.isatty()
        super().__init__(
            desc=name,
            total=total,
            initial=start,
            unit=f" {unit}s",
            file=self._file,
            disable=disable,
            dynamic_ncols=self._interactive,
            bar_format=None if self._interactive or not total else _FILE_FORMAT,
            mininterval=TERMINAL_SECONDS if self._interactive else FILE_SECONDS,
            miniters=1,
            delay=0 if self._interactive else 1e-9,  # the first line in a file comes after one interval
        )

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """count more are done. note: shown behind the numbers."""
        if note is not None:
            self.set_postfix_str(note, refresh=False)
        self.update(count)

    def advance_to(self, done: int, note: str | None = None) -> None:
        """done of the total are done."""
        self.advance(done - self.n, note)

    def log(self, text: str) -> None:
        """Print a line above the bar."""
        if self.disable:
            return
        if self._interactive:
            self.write(text, file=self._file)
        else:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Show the last state once, and leave it standing."""
        if self.disable or self._interactive:
            return super().close()
        self.disable = True
        self._decr_instances(self)
        print(self, file=self._file, flush=True)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda text: print(text, file=file, flush=True)

    def moveto(self, n: int) -> None:
        if self._interactive:
            super().moveto(n)

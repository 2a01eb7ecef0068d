"""Progress and speed of long work.

ProgressBar    by tqdm: rate and time left, one updated line in a terminal, occasional lines in a log file
Stopwatch      seconds and throughput of the parts of sampling and evaluation
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from utils.heartbeat import beat

if TYPE_CHECKING:
    import torch

TERMINAL_SECONDS, FILE_SECONDS = 0.2, 10.0  # between two displays
_FILE_FORMAT = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class ProgressBar(tqdm):
    """`with ProgressBar("encode", total) as bar: bar.advance(n, "loss 0.3")`. unit: counted unit, in the singular.

    In a file each update is a separate line, where tqdm would write one endless line of carriage returns.
    start: steps of an earlier run, which do not count in the rate. disable: show nothing.
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
        """count more are done, which is also a sign of life (utils.heartbeat). note: shown behind the numbers."""
        beat()
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
        """Show the last state once, and leave it on the screen."""
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


class Stopwatch:
    """Seconds of this process by part (such as "denoise"), and texts that each part produced."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device  # device that computes the texts; None: the CPU
        self.seconds: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.draft_passes, self.drafted_texts = 0, 0  # forward passes that verified drafts, and texts that were drafted

    @contextmanager
    def measure(self, what: str, texts: int) -> Iterator[None]:
        """Context manager: adds its time and the number of texts to `what`. Synchronizes the device at the end."""
        began = time.perf_counter()
        yield
        if self.device is not None:
            _synchronize(self.device)
        self.seconds[what] += time.perf_counter() - began  # type: ignore[assignment]
        self.texts[what] += texts

    @classmethod
    def merge_parallel(cls, watches: Sequence[Stopwatch]) -> Stopwatch:
        """Merge the stopwatches of processes that shared the work: texts of all, seconds of the slowest."""
        joined = cls(watches[0].device)
        for watch in watches:
            joined.seconds |= watch.seconds  # the larger of each
            joined.texts += watch.texts
            joined.count(watch.draft_passes, watch.drafted_texts)
        return joined

    @classmethod
    def merge_sequential(cls, watches: Sequence[Stopwatch]) -> Stopwatch:
        """Merge the stopwatches of jobs that ran one after another: sums of texts and seconds."""
        joined = cls(watches[0].device)
        for watch in watches:
            joined.seconds += watch.seconds
            joined.texts += watch.texts
            joined.count(watch.draft_passes, watch.drafted_texts)
        return joined

    def rates(self) -> dict[str, float]:
        """Texts per second of each part."""
        return {what: self.texts[what] / seconds for what, seconds in self.seconds.items() if seconds > 0}

    def count(self, passes: int, texts: int) -> None:
        """Add the number of forward passes that verified drafts, summed over texts, and the number of texts."""
        self.draft_passes, self.drafted_texts = self.draft_passes + passes, self.drafted_texts + texts

    def metadata(self) -> dict[str, float]:
        """Metrics of an evaluation: texts per second, and verification passes per text where texts were drafted."""
        found = {f"speed/{what}_texts_per_second": rate for what, rate in self.rates().items()}
        if self.drafted_texts:
            found["speed/verify_passes_per_text"] = self.draft_passes / self.drafted_texts
        return found

    def note(self, processes: int = 1) -> str:
        """Text for the progress bar. processes: number of processes that share the work; rates are multiplied by it."""
        parts = [f"{what} {rate * processes:.3g} texts/s" for what, rate in self.rates().items()]
        parts += [f"{self.draft_passes / self.drafted_texts:.3g} passes/text"] if self.drafted_texts else []
        return ", ".join(parts)


def _synchronize(device: torch.device) -> None:
    import torch  # not above: progress bars of programs that read data need no torch

    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()

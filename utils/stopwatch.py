"""How long the parts of a job take, and how much comes out of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

WAIT = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}  # until the device has done what it was given


class Stopwatch:
    """Seconds of this process by what they went into, and texts that came out of each."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.seconds: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.passes, self.verified = 0, 0  # of a language model over texts that were drafted, and how many those were

    @contextmanager
    def measure(self, what: str, texts: int) -> Iterator[None]:
        """Within, time counts for `what`. Waits for the device at the end: not for anything that is called often."""
        began = time.perf_counter()
        yield
        if self.device.type in WAIT:
            WAIT[self.device.type]()
        self.seconds[what] += time.perf_counter() - began  # type: ignore[assignment]
        self.texts[what] += texts

    @classmethod
    def side_by_side(cls, watches: Sequence[Stopwatch]) -> Stopwatch:
        """One for several processes that shared the work at the same time: texts of all, seconds of the slowest."""
        joined = cls(watches[0].device)
        for watch in watches:
            joined.seconds |= watch.seconds  # the larger of each
            joined.texts += watch.texts
            joined.count(watch.passes, watch.verified)
        return joined

    @classmethod
    def in_turn(cls, watches: Sequence[Stopwatch]) -> Stopwatch:
        """One for several jobs, one after another."""
        joined = cls(watches[0].device)
        for watch in watches:
            joined.seconds += watch.seconds
            joined.texts += watch.texts
            joined.count(watch.passes, watch.verified)
        return joined

    def rates(self) -> dict[str, float]:
        """Texts per second of each part."""
        return {what: self.texts[what] / seconds for what, seconds in self.seconds.items() if seconds > 0}

    def count(self, passes: int, texts: int) -> None:
        """Passes that it took to verify the drafts of some texts, summed over them."""
        self.passes, self.verified = self.passes + passes, self.verified + texts

    def facts(self) -> dict[str, float]:
        """Rates, and passes per text where texts were drafted, by the names of an evaluation."""
        rates = {f"speed/{what}_texts_per_second": rate for what, rate in self.rates().items()}
        return rates | ({"speed/passes_per_text": self.passes / self.verified} if self.verified else {})

    def note(self, processes: int = 1) -> str:
        """For a line of progress. processes: that do alike what this one does."""
        parts = [f"{what} {rate * processes:.3g} texts/s" for what, rate in self.rates().items()]
        parts += [f"{self.passes / self.verified:.3g} passes/text"] if self.verified else []
        return ", ".join(parts)

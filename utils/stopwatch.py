"""Seconds and throughput of the parts of sampling and evaluation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

SYNCHRONIZE = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}


class Stopwatch:
    """Seconds of this process by part (such as "denoise"), and texts that each part produced."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.seconds: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.draft_passes, self.drafted_texts = 0, 0  # forward passes that verified drafts, and texts that were drafted

    @contextmanager
    def measure(self, what: str, texts: int) -> Iterator[None]:
        """Within, time counts for the part `what`, which produces so many texts. Synchronizes the device at the end."""
        began = time.perf_counter()
        yield
        if self.device.type in SYNCHRONIZE:
            SYNCHRONIZE[self.device.type]()
        self.seconds[what] += time.perf_counter() - began  # type: ignore[assignment]
        self.texts[what] += texts

    @classmethod
    def merge_parallel(cls, watches: Sequence[Stopwatch]) -> Stopwatch:
        """Of processes that shared the work at the same time: texts of all, seconds of the slowest."""
        joined = cls(watches[0].device)
        for watch in watches:
            joined.seconds |= watch.seconds  # the larger of each
            joined.texts += watch.texts
            joined.count(watch.draft_passes, watch.drafted_texts)
        return joined

    @classmethod
    def merge_sequential(cls, watches: Sequence[Stopwatch]) -> Stopwatch:
        """Of jobs that ran one after another: sums."""
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
        """Add forward passes that verified the drafts of so many texts, summed over the texts."""
        self.draft_passes, self.drafted_texts = self.draft_passes + passes, self.drafted_texts + texts

    def metadata(self) -> dict[str, float]:
        """Metrics of an evaluation: texts per second, and verification passes per text where texts were drafted."""
        found = {f"speed/{what}_texts_per_second": rate for what, rate in self.rates().items()}
        if self.drafted_texts:
            found["speed/verify_passes_per_text"] = self.draft_passes / self.drafted_texts
        return found

    def note(self, processes: int = 1) -> str:
        """For the progress bar. processes: number of those that do the same work, by which rates are multiplied."""
        parts = [f"{what} {rate * processes:.3g} texts/s" for what, rate in self.rates().items()]
        parts += [f"{self.draft_passes / self.drafted_texts:.3g} passes/text"] if self.drafted_texts else []
        return ", ".join(parts)

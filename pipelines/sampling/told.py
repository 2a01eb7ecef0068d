"""What a block of samples is told: a condition, positions that are given, how long the texts are, what to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.records import Anchor, Condition
from utils.transfer import moved


@dataclass
class Told:
    """Each part may be absent; those that are there have one row for each text."""

    condition: Condition | None = None
    anchor: Anchor | None = None  # positions that stay as they are: a source, or the text around blanks
    mask: Tensor | None = None  # (B, L) bool, the positions of a text; absent: lengths are drawn, as in training
    read: Tensor | None = None  # (B, L) bool, what is decoded; absent: the whole text

    @classmethod
    def of(cls, told: Told | Condition | None) -> Told:
        return told if isinstance(told, Told) else cls(told)

    def __len__(self) -> int:
        return next(len(part) for part in (self.condition, self.anchor, self.mask, self.read) if part is not None)

    @property
    def empty(self) -> bool:
        return self.condition is None and self.anchor is None and self.mask is None and self.read is None

    def repeat(self, times: int) -> Told:
        """Each row `times` times in a row."""
        return self._each(lambda part: part.repeat(times), lambda x: x.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str) -> Told:
        return self._each(lambda part: part.to(device), lambda x: moved(x, device))

    def _each(self, of_record: Callable, of_tensor: Callable[[Tensor], Tensor]) -> Told:
        return Told(
            *(None if part is None else of_record(part) for part in (self.condition, self.anchor)),
            *(None if part is None else of_tensor(part) for part in (self.mask, self.read)),
        )

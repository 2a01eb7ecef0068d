"""Finds the step, the micro-batch and the examples where a loss stopped being finite, without waiting for the device.

The loop reads losses only when it logs, so that it notices a loss that is not finite several steps later, when every
weight is nan. This keeps the first such micro-batch on the device until then.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import DistContext, gather_objects

_MICROS = 2**20  # more than there are micro-batches in a step
Describe = Callable[[int, int, list[int]], str]
"""(step, micro, positions in the micro-batch) -> its examples in words, such as their rows and noise levels."""


class FirstNonFinite:
    """The first micro-batch of this rank with a loss that is nan or infinite, and the first step with such a norm."""

    def __init__(self, describe: Describe | None = None) -> None:
        """describe: of the step function; None where it has none."""
        self.describe = describe
        self._where: Tensor | None = None  # scalar: step * _MICROS + micro; -1: none
        self._losses: Tensor | None = None  # (b,) losses of that micro-batch

    def observe(self, losses: Tensor, step: int, micro: int) -> None:
        """losses: (b,) of a micro-batch, on the device. step: counted from 0."""
        losses = losses.detach().float()
        if self._where is None or self._losses is None:
            self._where, self._losses = torch.full((), -1, device=losses.device), losses
        if losses.shape != self._losses.shape:  # the last micro-batch of a pass may be smaller
            short = self._losses.numel() - losses.numel()
            losses = F.pad(losses, (0, short)) if short > 0 else losses[: self._losses.numel()]
        first = (self._where < 0) & ~losses.isfinite().all()
        self._where = torch.where(first, step * _MICROS + micro, self._where)
        self._losses = torch.where(first, losses, self._losses)

    def found(self) -> tuple[int, str] | None:
        """(step, counted from 1; the micro-batch and its examples in words), or None. Waits for the device."""
        where = -1 if self._where is None else int(self._where)
        if where < 0 or self._losses is None:
            return None
        step, micro = divmod(where, _MICROS)
        positions = (~self._losses.isfinite()).nonzero().flatten().tolist()
        shown = f"examples {_join(positions)} of micro-batch {micro}"
        if self.describe is not None:
            with suppress(Exception):  # it may depend on losses that are nan by now; the step is named in any case
                shown = f"{shown}: {self.describe(step, micro, positions)}"
        return step + 1, shown

    def found_on_any(self, dist: DistContext) -> tuple[int, str] | None:
        """The earliest of all ranks. Every rank must call it."""
        found = [one for one in gather_objects(dist, [self.found()]) if one is not None]
        return min(found) if found else None


def _join(numbers: list[int], most: int = 5) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"

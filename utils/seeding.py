"""Randomness as a pure function of (seed, step, purpose): nothing is drawn from a hidden, running state.

So a resumed run draws what the uninterrupted one would have drawn, and a batch split over micro-batches or ranks draws
what the whole batch would have drawn: every number is drawn for the global batch, and each part takes its rows.
Knows nothing of what the numbers are for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.transfer import moved


def derive(seed: int, *names: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. derive(42, step, "noise").

    The same on every machine, Python and torch version (blake2b of the type, length and text of each part, so that
    derive(1, 23), derive(12, 3) and derive(1, "23") differ), unlike hash().
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *names):
        # int() first: True and a numpy integer must give what the plain number gives
        text = part if isinstance(part, str) else str(int(part))
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text.encode())}:{text}".encode())
    return int.from_bytes(digest.digest(), "little") >> 1


DRAW = ("cpu", "cuda", "mps", "xpu")  # kinds of devices that draw random numbers themselves


def generator(seed: int, *names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, or on the CPU where that draws none; freshly seeded for one purpose.

    Devices draw different numbers from one seed.
    """
    own = device if torch.device(device).type in DRAW else "cpu"
    return torch.Generator(device=own).manual_seed(derive(seed, *names))


class Chosen(NamedTuple):
    """Rows of a micro-batch that were chosen."""

    mask: Tensor  # (B,) bool
    rows: Tensor  # (k,) int64, the chosen ones first; others after them where k would not be the same at every step


class Draws:
    """The random numbers of one training step: drawn for the global batch, rows start to stop of it returned.

    seed, step: what the numbers depend on, beside each purpose. total: examples of the global batch (all ranks and
    micro-batches). start, stop: the rows of this micro-batch. Two calls with one purpose return the same numbers.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        total: int,
        start: int,
        stop: int,
        device: torch.device | str = "cpu",
        *,
        names: tuple[int | str, ...] = (),
    ):
        assert 0 <= start <= stop <= total, f"rows {start} to {stop} are not part of a batch of {total}"
        self.seed, self.step, self.total, self.start, self.stop = seed, step, total, start, stop
        self.device = torch.device(device)
        self._names = names

    def __len__(self) -> int:
        return self.stop - self.start

    def sub(self, *names: int | str) -> Draws:
        """Another stream for the same rows: its purposes never meet those of this one."""
        return Draws(
            self.seed, self.step, self.total, self.start, self.stop, self.device, names=(*self._names, "sub", *names)
        )

    def generator(self, purpose: str) -> torch.Generator:
        return generator(self.seed, self.step, *self._names, purpose, device=self.device)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal, (stop - start, *shape), float32."""
        return self._drawn(torch.randn, purpose, shape)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in [0, 1), (stop - start, *shape), float32."""
        return self._drawn(torch.rand, purpose, shape)

    def _drawn(self, draw: Callable[..., Tensor], purpose: str, shape: tuple[int, ...]) -> Tensor:
        generator = self.generator(purpose)
        numbers = draw(self.total, *shape, generator=generator, device=generator.device)
        return moved(numbers[self.start : self.stop], self.device)

    def chosen(self, purpose: str, fraction: float) -> Tensor:
        """(stop - start,) bool, True for exactly round(fraction * total) rows of the global batch, redrawn each step.

        The choice is made within blocks of q rows, where fraction is p / q: pairs for 0.5, tens for 0.9. So slices
        whose bounds are multiples of q hold equal shares, and micro-batches keep static shapes. Which rows of a
        block are chosen is uniformly random.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"a share of examples must lie in [0, 1], but {fraction} was asked for")
        chosen = torch.zeros(self.total, dtype=torch.bool)
        # On the CPU whatever the device: one small tensor, copied without waiting, and the same choice everywhere.
        order = torch.rand(self.total, generator=generator(self.seed, self.step, *self._names, purpose))
        for start, stop, count in self._blocks(fraction):
            chosen[start + order[start:stop].argsort()[:count]] = True
        return moved(chosen[self.start : self.stop], self.device)

    def chosen_rows(self, purpose: str, fraction: float) -> Chosen:
        """As chosen, with the numbers of the rows, on the CPU: as many at every step of these bounds."""
        mask = Draws(self.seed, self.step, self.total, self.start, self.stop, names=self._names).chosen(
            purpose, fraction
        )
        overlaps = (
            (min(stop, self.stop) - max(start, self.start), count) for start, stop, count in self._blocks(fraction)
        )
        most = sum(min(overlap, count) for overlap, count in overlaps if overlap > 0)
        return Chosen(mask, mask.logical_not().to(torch.uint8).argsort(stable=True)[:most])

    def _blocks(self, fraction: float) -> Iterator[tuple[int, int, int]]:
        """(start, stop, how many are chosen) of each block of the global batch."""
        block = Fraction(fraction).limit_denominator(max(self.total, 1)).denominator
        for start in range(0, self.total, block):
            stop = min(start + block, self.total)
            yield start, stop, round(fraction * stop) - round(fraction * start)  # telescopes to round(fraction * total)

    def rows(self, fn: Callable[[int, torch.Generator], Any], purpose: str) -> Any:
        """This slice of fn(total, generator): a tensor (total, ...), or a tuple of such."""
        drawn = fn(self.total, self.generator(purpose))
        if isinstance(drawn, Tensor):
            return moved(drawn[self.start : self.stop], self.device)
        parts = [moved(x[self.start : self.stop], self.device) for x in drawn]
        return type(drawn)(*parts) if hasattr(drawn, "_fields") else tuple(parts)

"""Random numbers as a pure function of (seed, step, purpose), without a global generator.

A resumed run therefore draws the numbers of an uninterrupted one, and a batch split over micro-batches or ranks those
of the whole batch: every number is drawn for the global batch, and each part takes its rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.records import to_device


def derive_seed(seed: int, *names: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. derive_seed(42, step, "noise").

    The same on every machine, Python and torch version (blake2b of the type, length and text of each part, so that
    derive_seed(1, 23), derive_seed(12, 3) and derive_seed(1, "23") differ), unlike hash().
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *names):
        # int() first: True and a numpy integer must give the same as the plain number
        text = part if isinstance(part, str) else str(int(part))
        kind = "s" if isinstance(part, str) else "i"
        digest.update(f"{kind}{len(text.encode())}:{text}".encode())
    return int.from_bytes(digest.digest(), "little") >> 1


GENERATOR_DEVICES = ("cpu", "cuda", "mps", "xpu")  # these have a random number generator


def seeded_generator(seed: int, *names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose on `device`, or on the CPU where the device has none.

    Devices draw different numbers from the same seed.
    """
    own = device if torch.device(device).type in GENERATOR_DEVICES else "cpu"
    return torch.Generator(device=own).manual_seed(derive_seed(seed, *names))


WIDEST_ON_CPU = 64  # channels of a position
LARGEST_ON_CPU = 512  # positions x channels of a text, whatever its channels are


def noise_device(device: torch.device | str, channels: int, length: int) -> torch.device:
    """The device that draws the noise of samples, (length, channels) for each text.

    It is the CPU, except for latents of many channels and of many numbers on a CUDA device. A CPU draws one number in
    3.5 to 5 ns, on one core. A step of the denoiser of the paper takes 0.2 GFLOP a position, .5 us at 400 TFLOP/s: as
    long as 64 channels take .2 to .3 us, they are drawn while the GPU computes, and samples do not depend on the
    device. 768 channels would take 3 us. Of short latents, such as one vector of 384 channels, a batch of 250 texts is
    drawn in half a millisecond, no longer than a step of twelve blocks waits for its kernels to start, whatever its
    size. Drawn on the GPU, numbers differ from those of a CPU and of GPUs of other models.
    """
    device = torch.device(device)
    is_large = channels > WIDEST_ON_CPU and length * channels > LARGEST_ON_CPU
    return device if device.type == "cuda" and is_large else torch.device("cpu")


class SelectedRows(NamedTuple):
    """Randomly selected rows of a micro-batch."""

    mask: Tensor  # (B,) bool
    rows: Tensor  # (k,) int64, the selected ones first; then others, so that k is the same at every step


class StepRNG:
    """The random numbers of one training step: drawn for the global batch, of which rows start to stop are returned.

    The numbers depend on seed, step and the purpose of each call; two calls with one purpose return the same numbers.
    total: examples of the global batch (all ranks and micro-batches). start, stop: the rows of this micro-batch.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        total: int,
        start: int,
        stop: int,
        device: torch.device | str = "cpu",
    ) -> None:
        assert 0 <= start <= stop <= total, f"rows {start} to {stop} are not part of a batch of {total}"
        self.seed, self.step, self.total, self.start, self.stop = seed, step, total, start, stop
        self.device = torch.device(device)

    def __len__(self) -> int:
        return self.stop - self.start

    def generator(self, purpose: str) -> torch.Generator:
        return seeded_generator(self.seed, self.step, purpose, device=self.device)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal, (stop - start, *shape), float32."""
        return self._sample(torch.randn, purpose, shape)

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in [0, 1), (stop - start, *shape), float32."""
        return self._sample(torch.rand, purpose, shape)

    def _sample(self, draw: Callable[..., Tensor], purpose: str, shape: tuple[int, ...]) -> Tensor:
        generator = self.generator(purpose)
        numbers = draw(self.total, *shape, generator=generator, device=generator.device)
        return to_device(numbers[self.start : self.stop], self.device)

    def select_mask(self, purpose: str, fraction: float) -> Tensor:
        """(stop - start,) bool, True for exactly round(fraction * total) rows of the global batch, redrawn each step.

        The batch is divided into blocks of q rows, where fraction is p / q (2 rows for 0.5, 10 for 0.9), and p rows of
        each block are selected at random. A micro-batch of whole blocks therefore always has the same number of them.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"a fraction of examples must be in [0, 1], not {fraction}")
        selected = torch.zeros(self.total, dtype=torch.bool)
        # On the CPU for every device: one small tensor, copied without waiting, and the same selection everywhere.
        order = torch.rand(self.total, generator=seeded_generator(self.seed, self.step, purpose))
        for start, stop, count in self._blocks(fraction):
            selected[start + order[start:stop].argsort()[:count]] = True
        return to_device(selected[self.start : self.stop], self.device)

    def select_rows(self, purpose: str, fraction: float) -> SelectedRows:
        """The selection of select_mask, with the row numbers, on the CPU.

        The number of rows is the same at every step with the same start and stop.
        """
        mask = StepRNG(self.seed, self.step, self.total, self.start, self.stop).select_mask(purpose, fraction)
        overlaps = (
            (min(stop, self.stop) - max(start, self.start), count) for start, stop, count in self._blocks(fraction)
        )
        most = sum(min(overlap, count) for overlap, count in overlaps if overlap > 0)
        return SelectedRows(mask, mask.logical_not().to(torch.uint8).argsort(stable=True)[:most])

    def _blocks(self, fraction: float) -> Iterator[tuple[int, int, int]]:
        """(start, stop, number selected) of each block of the global batch."""
        block = Fraction(fraction).limit_denominator(max(self.total, 1)).denominator
        for start in range(0, self.total, block):
            stop = min(start + block, self.total)
            yield start, stop, round(fraction * stop) - round(fraction * start)  # telescopes to round(fraction * total)

    def sample_global(self, fn: Callable[[int, torch.Generator], Any], purpose: str) -> Any:
        """Rows of fn(total, generator), which returns a tensor (total, ...) or a tuple of such."""
        sample = fn(self.total, self.generator(purpose))
        if isinstance(sample, Tensor):
            return to_device(sample[self.start : self.stop], self.device)
        parts = [to_device(x[self.start : self.stop], self.device) for x in sample]
        return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)

"""Random numbers of sampling, drawn in blocks of a fixed number of texts.

Text i of a seed is row i % B of block i // B, where B is the block size of the run. Everything that a block draws
depends on its seed and its number, and is drawn for all B rows. A batch computes any rows of one block or of several,
and takes their numbers. Neither the batch size nor the number of texts or processes therefore changes a text, up to
the rounding of kernels, which may differ in the last bits between batches of different sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion.noise import BlockRows, RowGenerator, StepGenerator
from utils.seeding import seeded_generator


@dataclass(frozen=True)
class Segment:
    """Rows `first` up to `last` of a block of `size` rows."""

    block: int
    first: int
    last: int
    size: int

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def rows(self) -> slice:
        return slice(self.first, self.last)


def segments(first: int, last: int, size: int) -> tuple[Segment, ...]:
    """The texts `first` up to `last` as rows of blocks of `size`."""
    found = []
    while first < last:
        begin = first // size * size
        end = min(last, begin + size)
        found.append(Segment(first // size, first - begin, end - begin, size))
        first = end
    return tuple(found)


def step_generators(
    seed: int, parts: Sequence[Segment], purpose: str, device: torch.device | str = "cpu"
) -> StepGenerator:
    """step -> a generator on `device` of the rows of a batch, for one purpose."""

    def rows(part: Segment, step: int) -> BlockRows:
        # "block" is part of the seed: renaming it would change all samples
        generator = seeded_generator(seed, "block", part.block, purpose, step, device=device)
        return BlockRows(generator, part.first, part.last, part.size)

    return lambda step: RowGenerator([rows(part, step) for part in parts])

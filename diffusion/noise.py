"""The noise of a sampler: (step, like) -> standard normal like `like`, a function of the step alone.

    make_noise(step_generator, bound=None, rows=None)     one of the two:
    seeded(step_generator, rows)                          standard normal
    truncated(step_generator, bound, rows)                |eps| <= bound

step_generator: step -> a torch.Generator seeded for that step, on the CPU or on the device, so that the noise of a
step does not depend on earlier steps; or a RowGenerator of several, for rows of larger blocks.
rows: number of rows to draw; `like` gets the first of them, so a short batch has the noise of a full one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.sampler_steps import Noise


class BlockRows(NamedTuple):
    """Rows `first` up to `last` of a block of `size` rows, for all of which the generator draws."""

    generator: torch.Generator
    first: int
    last: int
    size: int


class RowGenerator:
    """Draws for the rows of a batch as if each block that they belong to were drawn as a whole."""

    def __init__(self, parts: Sequence[BlockRows]) -> None:
        self.parts = parts

    @property
    def device(self) -> torch.device:
        return self.parts[0].generator.device

    def draw(self, fn: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """fn: torch.rand or torch.randn. shape: (B, ...), B the rows of all parts."""
        drawn = [
            draw(fn, (part.size, *shape[1:]), part.generator, dtype)[part.first : part.last] for part in self.parts
        ]
        found = drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        assert len(found) == shape[0], f"{shape[0]} rows are asked for, and the parts of the batch hold {len(found)}"
        return found


StepGenerator = Callable[[int], torch.Generator | RowGenerator]


def draw(
    fn: Callable[..., Tensor],
    shape: Sequence[int],
    generator: torch.Generator | RowGenerator,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """fn(shape) on the device of the generator. fn: torch.rand or torch.randn."""
    if isinstance(generator, RowGenerator):
        return generator.draw(fn, shape, dtype)
    return fn(tuple(shape), generator=generator, device=generator.device, dtype=dtype)


def seeded(step_generator: StepGenerator, rows: int | None = None) -> Noise:
    """Standard normal noise."""

    def noise(step: int, like: Tensor) -> Tensor:
        generator = step_generator(step)
        eps = draw(torch.randn, _shape(like, rows), generator)
        return copy_like(eps[: len(like)], like)

    return noise


def truncated(step_generator: StepGenerator, bound: float, rows: int | None = None) -> Noise:
    """Standard normal noise truncated to |eps| <= bound: no outliers, less diversity.

    bound: positive, in standard deviations; inf: no bound.
    Source: Li et al. 2022, arXiv:2205.14217, their code. Differs from it: the inverse of the distribution function, one
    uniform number for each value, gives the same distribution without rejection.
    """
    if not bound > 0:
        raise ValueError(f"the bound of the noise is {bound}: use a positive number of standard deviations")
    if math.isinf(bound):
        return seeded(step_generator, rows)
    inside = math.erf(bound / math.sqrt(2))  # probability of |eps| <= bound

    def noise(step: int, like: Tensor) -> Tensor:
        generator = step_generator(step)
        exact = torch.float32 if generator.device.type == "mps" else torch.float64  # float32 has no values beyond 5
        u = draw(torch.rand, _shape(like, rows), generator, exact)
        eps = math.sqrt(2) * torch.erfinv(inside * (2 * u - 1))
        return copy_like(eps[: len(like)].clamp(-bound, bound), like)

    return noise


def make_noise(step_generator: StepGenerator, bound: float | None = None, rows: int | None = None) -> Noise:
    """Truncated noise; standard normal noise where bound is None or 0."""
    return truncated(step_generator, bound, rows) if bound else seeded(step_generator, rows)


def copy_like(drawn: Tensor, like: Tensor) -> Tensor:
    """`drawn` with the device and dtype of `like`; a copy to a GPU does not make the host wait."""
    if like.device.type == "cuda" and drawn.device.type == "cpu":
        drawn = drawn.pin_memory()
    return drawn.to(like, non_blocking=True)


def _shape(like: Tensor, rows: int | None) -> tuple[int, ...]:
    return (rows or len(like), *like.shape[1:])

"""Dropout whose masks, on a CPU, are made of random bits. Srivastava et al. 2014.

On a CPU torch draws a uniform number for every element, one after the other, which took a sixth of a training step.
Here 16 random bits are compared with a threshold, and a mask of whole words is combined with the numbers by `and`.
What changes: which elements are dropped at a given seed; and the probability, which is rounded to a multiple of 2**-16
(0.1 becomes 0.1000061). The scale is that of the rounded probability, so the expected value is that of the input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from utils.kernels import dropout_by_bits

LEVELS = 2**16
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers by size of a number in bytes


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p and divide the others by 1 - p; x in float16, bfloat16, float32 or float64.

    The random numbers are those of torch's generator of the device of x.
    """
    if p == 0.0:
        return x
    return _BitDropout.apply(x, p) if dropout_by_bits(x) else F.dropout(x, p)


class Dropout(nn.Dropout):
    """torch's layer, with these masks."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


class _BitDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        threshold = round(p * LEVELS)
        mask = _kept(x.numel(), threshold).view(x.shape)
        ctx.scale = LEVELS / (LEVELS - threshold) if threshold < LEVELS else 0.0
        ctx.save_for_backward(mask)
        return _apply(x, mask, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _apply(grads[0], ctx.saved_tensors[0], ctx.scale), None


def _kept(count: int, threshold: int) -> Tensor:
    """(count,) int16: all bits set with probability 1 - threshold / 2**16, else none."""
    random = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    # `out` of the same type takes a vectorized comparison
    return torch.ge(random, threshold - LEVELS // 2, out=torch.empty_like(random)).neg_()


def _apply(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    words = WORDS[x.element_size()]
    return torch.bitwise_and(x.contiguous().view(words), mask.to(words)).view(x.dtype).mul_(scale)

"""The mean over the valid positions of latents, with which losses become one number per text."""

from __future__ import annotations

from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of x (B, L, D) over the positions where mask (B, L) is True, and over D: (B,).

    Short texts count as much as long ones. Values at masked positions have no effect, not even nan. A text without a
    valid position has the mean 0. mask None: all True.
    """
    if mask is None:
        return x.flatten(1).mean(1)
    total = x.masked_fill(~mask[..., None], 0).sum((1, 2))
    return total / (mask.sum(1).clamp(min=1) * x.shape[-1])

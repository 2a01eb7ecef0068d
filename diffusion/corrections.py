"""Several corrections of a sampler's state, as one.

    sampler(..., correct=in_turn(stability.correct, remasking(...), control(...), watch))

A correction is (z, x0_hat, mean, std, t, s, step) -> z, called after every transition (diffusion/transitions).
"""

from __future__ import annotations

from torch import Tensor

from diffusion.transitions import Correct


def in_turn(*corrections: Correct | None) -> Correct | None:
    """Each gets the z of the one before; all see the same estimate, mean and std. None among them is left out."""
    there = [correct for correct in corrections if correct is not None]
    if not there:
        return None

    def correct(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        for one in there:
            z = one(z, x0, mean, std, t, s, step)
        return z

    return correct

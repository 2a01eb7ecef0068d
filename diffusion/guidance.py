"""Classifier-free guidance, as a wrapper around a Denoise. Never sees a condition: the caller has bound it.

Positions that stay clean while the others are denoised: a source prefix, or given text around blanks.

Source: partial noising of Gong et al. 2023, arXiv:2210.08933, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoisers import Denoise


def classifier_free_guided(denoise_2B: Denoise, weight: float) -> Denoise:
    """weight * conditional + (1 - weight) * unconditional.

    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with weight = 1 + their w.
    denoise_2B: bound to the conditions of B examples, followed by the null conditions of the same B. Both halves are
    shown the same z, t and x0_prev. Mixing estimates of x0, of eps or of v gives one answer: each is affine in the
    others with coefficients that the halves share.
    Weight 1 is the unguided answer, to the bit; 0 ignores the condition. Two network calls per example at any weight,
    1 included: whoever samples unguided leaves the wrapper off.
    """

    def denoise_guided(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        twice = None if x0_prev is None else torch.cat([x0_prev, x0_prev])
        times = t if len(t) == 1 else torch.cat([t, t])
        conditional, unconditional = denoise_2B(torch.cat([z, z]), times, twice).chunk(2)  # (B, L, D) each
        return weight * conditional + (1 - weight) * unconditional

    return denoise_guided


def with_known_positions(denoise: Denoise, value: Tensor, mask: Tensor) -> Denoise:
    """Where mask is True, the network is shown `value` instead of z, and the estimate is `value`.

    value: (B, L, D). mask: (B, L) bool. The sampler's own z still carries noise there until it reaches t = 0, unseen.
    """
    kept = mask[..., None]  # (B, L, 1)

    def denoise_anchored(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        return torch.where(kept, value, denoise(torch.where(kept, value, z), t, x0_prev))

    return denoise_anchored

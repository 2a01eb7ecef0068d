"""Positions that stay clean while the others are denoised: a source prefix, or given text around blanks.

Source: partial noising of Gong et al. 2023, arXiv:2210.08933, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoisers import Denoise


def anchored(denoise: Denoise, value: Tensor, mask: Tensor) -> Denoise:
    """Where mask is True, the network is shown `value` instead of z, and the estimate is `value`.

    value: (B, L, D). mask: (B, L) bool. The sampler's own z still carries noise there until it reaches t = 0, unseen.
    """
    kept = mask[..., None]  # (B, L, 1)

    def denoise_anchored(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        return torch.where(kept, value, denoise(torch.where(kept, value, z), t, x0_prev))

    return denoise_anchored

"""Classifier-free guidance and known positions, as wrappers around a Denoise.

    classifier_free_guided(denoise_2B, weight)       conditions are bound by the caller
    with_known_positions(denoise, value, mask)       positions of a source, or around gaps, stay clean
    with_known_inputs(denoise_2B, value, mask)       below guidance: each half receives its own known values

Known positions: partial noising of Gong et al. 2023, arXiv:2210.08933, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoisers import Denoise


def classifier_free_guided(denoise_2B: Denoise, weight: float) -> Denoise:
    """weight * conditional + (1 - weight) * unconditional.

    Source: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with weight = 1 + their w.
    denoise_2B: bound to the conditions of B examples, followed by the null conditions of the same B. Both halves
    receive the same z, t and x0_prev. Guidance in x0, in eps or in v gives the same result: each is affine in the
    others with coefficients that the halves share.
    Weight 1 gives the conditional estimate to the bit, 0 the unconditional one. Every weight costs two network calls
    per example, 1 included: leave the wrapper out for unguided sampling.
    """

    def denoise_guided(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        x0_prev_twice = None if x0_prev is None else torch.cat([x0_prev, x0_prev])
        times = t if len(t) == 1 else torch.cat([t, t])
        conditional, unconditional = denoise_2B(torch.cat([z, z]), times, x0_prev_twice).chunk(2)  # (B, L, D) each
        return weight * conditional + (1 - weight) * unconditional

    return denoise_guided


def with_known_positions(denoise: Denoise, value: Tensor, mask: Tensor) -> Denoise:
    """Where mask is True, the network receives `value` instead of z, and the estimate is `value`.

    value: (B, L, D). mask: (B, L) bool. The sampler's z carries noise there until t = 0, which the network does not
    receive.
    """
    known = mask[..., None]  # (B, L, 1)

    def denoise_with_known(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        return torch.where(known, value, denoise(torch.where(known, value, z), t, x0_prev))

    return denoise_with_known


def with_known_inputs(denoise: Denoise, value: Tensor, mask: Tensor) -> Denoise:
    """Where mask is True, the network receives `value` in z and in the previous estimate; its estimate is not changed.

    For guidance by known positions: the rows of the null source must not see the source, which the previous estimate
    of the guided sampler holds. value: (B, L, D). mask: (B, L) bool.
    """
    known = mask[..., None]  # (B, L, 1)

    def denoise_known(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        x0_prev = None if x0_prev is None else torch.where(known, value.to(x0_prev), x0_prev)
        return denoise(torch.where(known, value.to(z), z), t, x0_prev)

    return denoise_known

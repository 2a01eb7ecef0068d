"""Latents that say nothing of their text, in place of those of an autoencoder: noise with their mean and deviation.

Mean and deviation are those of held-out texts, at each position and channel; where texts differ in their number of
latents, at each channel. So the noise looks like latents, and a decoder that ignores its latents has the same loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from latent_models.spaces.compressed import CompressedSpace
from utils.records import Batch, Latents


class LatentStatistics(NamedTuple):
    """Mean and standard deviation of latents, each (L, D), or (D,) where texts differ in their number of latents."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, latents: Iterable[Latents], *, variable_length: bool) -> LatentStatistics:
        """latents: batches of (B, L, D)."""
        found = [(part.x0.float(), part.mask) for part in latents]
        x0 = torch.cat([x[mask] if variable_length else x for x, mask in found])  # (n, D) or (B, L, D)
        deviation, mean = torch.std_mean(x0, dim=0, correction=0)
        return cls(mean, deviation)


def replaced(space: CompressedSpace, latents: Latents, statistics: LatentStatistics, eps: Tensor) -> Latents:
    """Noise in place of latents (B, L, D), which keep their mask. eps: standard normal, of their shape."""
    x0 = (statistics.mean + statistics.deviation * eps).to(latents.x0)
    if space.variable_length:
        x0 = x0 * latents.mask[..., None]
    return Latents(space.project(x0), latents.mask)


def nats_per_token(space: CompressedSpace, batch: Batch, latents: Latents, sigma: float) -> Tensor:
    """Loss (B,) of the texts of a batch given latents with noise of level sigma, which a decoder may read."""
    memory = space.memory(latents, latents.x0.new_full((len(latents),), sigma))
    memory_mask = latents.mask if space.variable_length else None
    return space.language_model.reconstruction_loss(memory, memory_mask, batch.input_ids, batch.attention_mask)

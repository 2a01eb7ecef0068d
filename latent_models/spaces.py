"""The contract of a latent space: text to latents and back. Everything above this line speaks only to it.

A space knows tokens and language models; it does not know noise. Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from utils.records import Batch, Latents


class LatentSpace(nn.Module, ABC):
    """Where diffusion happens."""

    length: int  # L, positions of a latent
    dim: int  # D, channels of a position
    masked: bool = True  # whether texts of a batch can have different numbers of positions
    by_token: bool = False  # whether a text of k tokens fills the first k positions; then a cache holds no padding
    trainable: bool = False  # whether diffusion training changes it; then its latents must not be cached

    @abstractmethod
    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        """Clean latents of a batch of tokens. generator: for spaces whose encoding is random."""

    @abstractmethod
    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        """Texts of clean latents. generate: arguments of the decoder, see decoding.py."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that decides what encode returns."""

    def project(self, x0: Tensor) -> Tensor:
        """The nearest point of the space to an estimate (B, L, D); the identity where every point belongs to it."""
        return x0

    def token_logits(self, x0: Tensor) -> Tensor | None:
        """Logits (B, L, V) where a position is a token, else None."""
        return None

    def auxiliary_losses(self, batch: Batch, latents: Latents, x0_hat: Tensor) -> dict[str, Tensor]:
        """Losses (B,) by name beside the diffusion loss."""
        return {}

    def passes(self) -> tuple[int, int]:
        """(passes, texts): how often drafts were verified since this was last asked, summed over so many texts."""
        return 0, 0

    def sample_mask(self, n: int, generator: torch.Generator) -> Tensor:
        """Masks (n, L) of texts to be sampled: all True, or lengths drawn from those of the training set."""
        return torch.ones(n, self.length, dtype=torch.bool)

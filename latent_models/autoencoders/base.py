"""The contract of an autoencoder: encoder states of a language model to latents, and back.

An autoencoder uses states and latents, and neither tokens nor noise. Shapes: B texts, T tokens, L latents of D
channels, d_lm channels of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from utils.records import Batch, Latents


class Autoencoder(nn.Module, ABC):
    """Compresses the encoder states of a text and expands latents into states that the decoder attends to.

    Constructed by its row of AUTOENCODERS as kind(dim_lm, options, max_seq_len). With --lm_mode decoder the submodule
    `encoder` stays frozen and `decoder` trains.
    """

    dim_lm: int  # d_lm
    dim: int  # D
    num_latents: int  # L
    max_seq_len: int  # longest text, in tokens
    encoder: nn.Module
    decoder: nn.Module
    loss_weights: Mapping[str, float] = {}  # weights of the losses by name; 1 where a name is missing

    @abstractmethod
    def encode(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """states (B, T, d_lm), mask (B, T) bool or None for no padding -> latents (B, L, D)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, L, D) -> memory (B, S, d_lm): states that the language model's decoder attends to."""

    def project(self, latents: Tensor) -> Tensor:
        """The nearest valid latents, for example of a fixed norm; the identity where all latents are valid."""
        return latents

    def losses(self, batch: Batch, latents: Latents, states: Tensor) -> dict[str, Tensor]:
        """The autoencoder's own losses (B,) by name, for example a KL divergence; none by default.

        latents: as encoded, before any augmentation. states: (B, T, d_lm) that they were encoded from. Training adds
        each, times its weight, to the reconstruction loss (CompressedSpace.total_loss), and logs it by its name.
        """
        return {}

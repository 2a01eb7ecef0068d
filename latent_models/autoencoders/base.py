"""The contract of an autoencoder: encoder states of a language model to latents, and back.

An autoencoder uses states and latents, and neither tokens nor noise. Shapes: B texts, T tokens, L latents of D
channels, d_lm channels of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from latent_models.autoencoders.variational import VariationalEncoder
from utils.errors import UserError
from utils.records import Batch, Latents


class Autoencoder(nn.Module, ABC):
    """Compresses the encoder states of a text and expands latents into states that the decoder attends to.

    Constructed by its row of AUTOENCODERS as kind(dim_lm, options, max_seq_len). With --lm_mode decoder the submodule
    `encoder` stays frozen and `decoder` trains.
    """

    dim_lm: int  # d_lm
    dim: int  # D
    num_latents: int  # L, the largest number where texts differ in it
    max_seq_len: int  # longest text, in tokens
    encoder: nn.Module
    decoder: nn.Module
    variable_length: bool = False  # whether each token has one latent; then latents have the mask of the tokens
    l2_normalize: bool = False  # whether latents have a fixed norm
    loss_weights: Mapping[str, float] = {}  # weights of the losses by name; 1 where a name is missing

    @abstractmethod
    def encode(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """states (B, T, d_lm), mask (B, T) bool or None for no padding -> latents (B, L, D)."""

    def encode_distribution(self, states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As encode, and the log-variance (B, L, D) of the latents; None where latents are points."""
        if not isinstance(self.encoder, VariationalEncoder):
            return self.encode(states, mask), None
        return self.encoder.distribution(states, mask)

    def make_variational(self) -> None:
        """Give latents a mean and a variance (--kl_weight). UserError where latents have a fixed norm."""
        if self.l2_normalize:
            raise UserError(
                "--kl_weight gives latents a mean and a variance, and --l2_normalize_latents a fixed norm: leave one "
                "out"
            )
        self.encoder = VariationalEncoder(self.encoder, self.dim)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, L, D) -> memory (B, S, d_lm): states that the language model's decoder attends to.

        With variable_length also takes the mask (B, L) of the latents, which is that of the memory, too.
        """

    def project(self, latents: Tensor) -> Tensor:
        """The nearest valid latents, for example of a fixed norm; the identity where all latents are valid."""
        return latents

    def losses(self, batch: Batch, latents: Latents, states: Tensor) -> dict[str, Tensor]:
        """The autoencoder's own losses (B,) by name, for example a KL divergence; none by default.

        latents: as encoded, before any augmentation. states: (B, T, d_lm) that they were encoded from. Training adds
        each, times its weight, to the reconstruction loss (CompressedSpace.total_loss), and logs it by its name.
        """
        return {}

"""One latent per token: a narrow bottleneck at every position, without compression along the text.

    states (B, T, d_lm), mask (B, T)  ->  latents (B, T, d)  ->  memory (B, T, d_lm)

Texts differ in their number of latents, as in the space of encoder states, but a latent is as narrow as wanted.
TextLDM, arXiv:2605.07748, has this layout. Shapes: B texts, T tokens, d channels (--dim_ae).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.autoencoders.base import Autoencoder
from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import DecoderLayer
from model.attention import HEAD_DIM, check_heads
from utils.errors import UserError


class TokenEncoder(nn.Module):
    """Transformer layers on the states, then a projection to d channels of each token."""

    def __init__(self, dim_lm: int, dim: int, depth: int, head_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim_lm, head_dim) for _ in range(depth))
        self.norm_states = nn.LayerNorm(dim_lm)
        self.output_proj = nn.Linear(dim_lm, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        visible = None if mask is None else mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        for layer in self.layers:
            states = layer(states, visible)
        return self.norm(self.output_proj(self.norm_states(states)))


class TokenDecoder(nn.Module):
    """A projection of each latent to the width of the language model, then transformer layers."""

    def __init__(self, dim_lm: int, dim: int, max_seq_len: int, depth: int, head_dim: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(dim, dim_lm)
        self.positions = nn.Embedding(max_seq_len, dim_lm)
        self.layers = nn.ModuleList(DecoderLayer(dim_lm, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim_lm)

    def forward(self, latents: Tensor, mask: Tensor | None) -> Tensor:
        length = latents.shape[1]
        x = self.input_proj(latents) + self.positions.weight[:length] * self.positions.embedding_dim**-0.5
        visible = None if mask is None else mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, visible)
        return self.norm(x)


class PerTokenAutoencoder(Autoencoder):
    """Encoder states of a text <-> one latent for each of its tokens. It has the flags of the Perceiver but for
    --num_encoder_latents."""

    variable_length = True

    def __init__(self, dim_lm: int, options: PerceiverOptions, max_seq_len: int, *, head_dim: int = HEAD_DIM) -> None:
        """dim_lm: width of the language model. max_seq_len: longest text, in tokens."""
        super().__init__()
        check_heads(dim_lm, head_dim, "the width of the language model (--enc_dec_model, --d_model)")
        self.dim_lm, self.dim, self.num_latents, self.max_seq_len = dim_lm, options.dim_ae, max_seq_len, max_seq_len
        self.l2_normalize = options.l2_normalize_latents
        self.encoder = TokenEncoder(dim_lm, self.dim, options.num_layers, head_dim)
        self.decoder = TokenDecoder(dim_lm, self.dim, max_seq_len, options.num_layers, head_dim)

    def encode(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """states: (B, T, d_lm); mask: (B, T) bool, None for no padding. Returns (B, T, d), zero at padding."""
        self.check_length(states.shape[1])
        return self.project(self.clear_padding(self.encoder(states, mask), mask))

    def encode_distribution(self, states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self.check_length(states.shape[1])
        mean, log_variance = super().encode_distribution(states, mask)
        return self.clear_padding(mean, mask), log_variance

    def decode(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d_lm); the language model's decoder attends to where the mask (B, T) is True."""
        return self.decoder(latents, mask)

    def project(self, latents: Tensor) -> Tensor:
        """Rescale each latent to norm sqrt(d) with --l2_normalize_latents, else the identity; zero stays zero."""
        return F.normalize(latents, dim=-1) * math.sqrt(self.dim) if self.l2_normalize else latents

    def check_length(self, length: int) -> None:
        if length > self.max_seq_len:
            raise UserError(
                f"a text of {length} tokens exceeds the autoencoder's {self.max_seq_len}: train it with a larger "
                "--max_seq_len, or truncate texts there"
            )

    @staticmethod
    def clear_padding(latents: Tensor, mask: Tensor | None) -> Tensor:
        return latents if mask is None else latents * mask.to(latents.dtype)[..., None]

"""The Perceiver autoencoder: a Perceiver compresses the encoder states of a text into a fixed number of latents, and a
transformer expands these into the memory that the language model's decoder attends to.

    states (B, T, d_lm), mask (B, T)  ->  latents (B, N, d)  ->  memory (B, N, d_lm)

Lovelace et al. 2023, arXiv:2212.09462; Jaegle et al. 2021,
arXiv:2103.03206; the resampler of Alayrac et al. 2022, arXiv:2204.14198.
Shapes: B texts, T tokens, N latents (--num_encoder_latents) of d channels (--dim_ae).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.autoencoders.base import Autoencoder
from latent_models.autoencoders.options import PerceiverOptions
from model.attention import HEAD_DIM, attend, check_heads, for_products, split_heads
from utils.errors import UserError


class QKNorm(nn.Module):
    """RMS norm of each head's vector, x / rms(x) * gamma, one gamma for all heads: bounds the scores.

    Henry et al. 2020, arXiv:2010.04245, with a learned gain per channel.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, L, head). eps is the square of the reference's lower bound 1e-8 of the rms."""
        return F.rms_norm(x, self.gamma.shape, self.gamma.to(x.dtype), eps=1e-16)


class FeedForward(nn.Module):
    """A pre-norm branch with a hidden layer four times as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


class LatentAttention(nn.Module):
    """Latents attend to the states and to themselves."""

    def __init__(self, dim_lm: int, dim: int, head_dim: int) -> None:
        super().__init__()
        inner = max(dim, dim_lm)
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(dim_lm)
        self.norm_latents = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, inner, bias=False)
        self.kv = nn.Linear(dim_lm, 2 * inner, bias=False)  # keys first, then values
        # states and latents of the same width share one projection, as in the reference
        self.latent_kv = nn.Linear(dim, 2 * inner, bias=False) if dim != dim_lm else None
        self.query_norm = QKNorm(head_dim)
        self.key_norm = QKNorm(head_dim)
        self.out = nn.Linear(inner, dim)

    def forward(self, states: Tensor, latents: Tensor, visible: Tensor | None) -> Tensor:
        """states: (B, T, d_lm); latents: (B, N, d); visible: (B, 1, 1, T + N) bool or None. Returns (B, N, d)."""
        states, latents = self.norm(states), for_products(self.norm_latents(latents))
        latent_kv = self.kv if self.latent_kv is None else self.latent_kv
        k, v = torch.cat([self.kv(states), latent_kv(latents)], dim=1).chunk(2, dim=-1)  # (B, T + N, inner) each
        q, k, v = (split_heads(y, self.head_dim) for y in (self.q(latents), k, v))  # (B, H, N or T + N, head)
        return self.out(attend(self.query_norm(q), self.key_norm(k), v, visible))


class SelfAttention(nn.Module):
    """A pre-norm branch with normalized queries and keys."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.query_norm = QKNorm(head_dim)
        self.key_norm = QKNorm(head_dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """x: (B, L, d). visible: bool, broadcastable to (B, H, L, L); None: every position sees all of them."""
        x = for_products(self.norm(x))
        q, k, v = (split_heads(y, self.head_dim) for y in (self.q(x), self.k(x), self.v(x)))
        return self.out(attend(self.query_norm(q), self.key_norm(k), v, visible))


class EncoderLayer(nn.Module):
    def __init__(self, dim_lm: int, dim: int, head_dim: int) -> None:
        super().__init__()
        self.attention = LatentAttention(dim_lm, dim, head_dim)
        self.feed_forward = FeedForward(dim)

    def forward(self, states: Tensor, latents: Tensor, visible: Tensor | None) -> Tensor:
        latents = latents + self.attention(states, latents, visible)
        return latents + self.feed_forward(latents)


class DecoderLayer(nn.Module):
    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, head_dim)
        self.feed_forward = FeedForward(dim)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        x = x + self.attention(x, visible)
        return x + self.feed_forward(x)


class PerceiverEncoder(nn.Module):
    """States of any length up to max_seq_len -> num_latents latents."""

    def __init__(self, dim_lm: int, dim: int, num_latents: int, depth: int, max_seq_len: int, head_dim: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_seq_len, dim_lm)
        self.queries = nn.Parameter(0.02 * torch.randn(num_latents, dim))
        self.layers = nn.ModuleList(EncoderLayer(dim_lm, dim, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        rows, length, dim_lm = states.shape
        if length > self.positions.num_embeddings:
            raise UserError(
                f"a text of {length} tokens exceeds the autoencoder's {self.positions.num_embeddings}: "
                "train it with a larger --max_seq_len, or truncate texts there"
            )
        states = states + self.positions.weight[:length] * dim_lm**-0.5  # (B, T, d_lm)
        latents = self.queries.expand(rows, -1, -1)  # (B, N, d)
        visible = None
        if mask is not None:
            # latents are always visible, so no row is empty and a boolean mask is safe
            visible = F.pad(mask, (0, latents.shape[1]), value=True)[:, None, None, :]  # (B, 1, 1, T + N)
        for layer in self.layers:
            latents = layer(states, latents, visible)
        return self.norm(latents)


class PerceiverDecoder(nn.Module):
    """Each latent -> one state for the language model's decoder."""

    def __init__(self, dim_lm: int, dim: int, num_latents: int, depth: int, head_dim: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(dim, dim_lm)
        self.positions = nn.Embedding(num_latents, dim_lm)
        self.layers = nn.ModuleList(DecoderLayer(dim_lm, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim_lm)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.input_proj(latents)  # (B, N, d_lm)
        x = x + self.positions.weight * self.positions.embedding_dim**-0.5
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class PerceiverAutoencoder(Autoencoder):
    """Encoder states of a text <-> its latents. It has no losses of its own."""

    def __init__(self, dim_lm: int, options: PerceiverOptions, max_seq_len: int, *, head_dim: int = HEAD_DIM) -> None:
        """dim_lm: width of the language model. max_seq_len: longest text, in tokens."""
        super().__init__()
        n, dim, depth = options.num_encoder_latents, options.dim_ae, options.num_layers
        sizes = {"num_encoder_latents": n, "dim_ae": dim, "num_layers": depth, "max_seq_len": max_seq_len}
        for flag, value in sizes.items():
            if value < 1:
                raise UserError(f"--{flag} is {value}: the autoencoder needs at least 1")
        if options.num_decoder_latents not in (None, n):
            raise UserError(
                f"--num_decoder_latents {options.num_decoder_latents} differs from --num_encoder_latents "
                f"{n}: the decoder expands each latent to one state, so leave the flag out"
            )
        check_heads(dim_lm, head_dim, "the width of the language model (--enc_dec_model, --d_model)")
        if dim > dim_lm:
            check_heads(dim, head_dim, "--dim_ae (above the width of the language model)")
        self.dim_lm, self.dim, self.num_latents, self.max_seq_len = dim_lm, dim, n, max_seq_len
        self.l2_normalize = options.l2_normalize_latents
        self.encoder = PerceiverEncoder(dim_lm, dim, n, depth, max_seq_len, head_dim)
        self.decoder = PerceiverDecoder(dim_lm, dim, n, depth, head_dim)

    def encode(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """states: (B, T, d_lm), T at most max_seq_len; mask: (B, T) bool, None for no padding. Returns (B, N, d)."""
        return self.project(self.encoder(states, mask))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d_lm), all of which the language model's decoder may attend to."""
        return self.decoder(latents)

    def project(self, latents: Tensor) -> Tensor:
        """Rescale each latent to norm sqrt(d) with --l2_normalize_latents, else the identity. (..., d) -> (..., d)."""
        return F.normalize(latents, dim=-1) * math.sqrt(self.dim) if self.l2_normalize else latents

    def forward(self, states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, N, d), and the memory (B, N, d_lm) decoded from them."""
        latents = self.encode(states, mask)
        return latents, self.decode(latents)

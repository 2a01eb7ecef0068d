"""Networks that train with an autoencoder and serve its losses, or tell its decoder the noise of its latents.

Shapes: B texts, T tokens, L latents of D channels, S states of memory, d_lm channels of the language model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.autoencoders.options import LatentLossOptions
from latent_models.autoencoders.perceiver import EncoderLayer
from model.attention import HEAD_DIM
from model.blocks import TimeEmbedding

if TYPE_CHECKING:
    from latent_models.autoencoders.base import Autoencoder


class FeatureHead(nn.Module):
    """Memory (B, S, d_lm) -> estimates of the encoder's states (B, T, d_lm): one query per token attends to the memory.

    It undoes what the autoencoder's encoder did, as the decompressor of COSMOS does.
    """

    def __init__(self, dim_lm: int, max_seq_len: int, head_dim: int = HEAD_DIM) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(max_seq_len, dim_lm))
        self.layer = EncoderLayer(dim_lm, dim_lm, head_dim)
        self.norm = nn.LayerNorm(dim_lm)
        self.output_proj = nn.Linear(dim_lm, dim_lm)

    def forward(self, memory: Tensor, memory_mask: Tensor | None, mask: Tensor) -> Tensor:
        """memory_mask: (B, S), None where no state is padding. mask: (B, T), of the tokens."""
        rows, length = mask.shape
        queries = self.positions[:length].expand(rows, -1, -1)
        known = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
        visible = torch.cat([known if memory_mask is None else memory_mask.bool(), mask.bool()], dim=1)  # (B, S + T)
        return self.output_proj(self.norm(self.layer(memory, queries, visible[:, None, None, :])))


class AlignmentHead(nn.Module):
    """Latents (B, L, D) -> (B, d): a linear map, as in VA-VAE, so that what aligns is the latents and not the head.

    Of a fixed number of latents it reads them all; where texts differ in it, their mean.
    """

    def __init__(self, num_latents: int | None, dim: int, dim_target: int) -> None:
        """num_latents: L, None where texts differ in it."""
        super().__init__()
        self.is_fixed = num_latents is not None
        self.proj = nn.Linear(dim * (num_latents or 1), dim_target, bias=False)

    def forward(self, x0: Tensor, mask: Tensor) -> Tensor:
        if self.is_fixed:
            return self.proj(x0.flatten(1))
        weights = mask.to(x0.dtype)[..., None]
        return self.proj((x0 * weights).sum(1) / weights.sum(1).clamp(min=1))


class NoiseLevelHead(nn.Module):
    """Sigma (B,) -> a vector (B, D) that is added to every latent before it is decoded; zero before training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = max(32, dim + dim % 2)  # sinusoids come in pairs
        self.embedding = TimeEmbedding(width)
        self.output_proj = nn.Linear(4 * width, dim)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        return self.output_proj(self.embedding(sigma))


class Heads(nn.Module):
    """The heads of the flags; None where a flag is off."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        losses: LatentLossOptions,
        noise_level_conditioning: bool = False,
        alignment_dim: int | None = None,
        *,
        head_dim: int = HEAD_DIM,
    ) -> None:
        """alignment_dim: channels of the states with which latents are aligned."""
        super().__init__()
        dim_lm, length, dim = autoencoder.dim_lm, autoencoder.max_seq_len, autoencoder.dim
        count = None if autoencoder.variable_length else autoencoder.num_latents
        self.feature_matching = FeatureHead(dim_lm, length, head_dim) if losses.feature_matching_weight else None
        aligns = losses.alignment_weight and alignment_dim is not None
        self.alignment = AlignmentHead(count, dim, alignment_dim) if aligns and alignment_dim else None
        self.noise_level = NoiseLevelHead(dim) if noise_level_conditioning else None

    def decoder_parts(self) -> list[nn.Module]:
        """Those that train with --lm_mode decoder: none that reads latents for their own sake."""
        return [part for part in (self.feature_matching, self.noise_level) if part is not None]


def match_features(
    head: FeatureHead, memory: Tensor, memory_mask: Tensor | None, states: Tensor, mask: Tensor
) -> Tensor:
    """Mean square error (B,) of the estimates of the states (B, T, d_lm) of each token, over tokens and channels.

    Differs from COSMOS: the states are layer-normed, without weights, so that a weight means the same for each family.
    """
    target = F.layer_norm(states.detach().float(), states.shape[-1:])
    error = (head(memory, memory_mask, mask).float() - target).square().mean(-1)  # (B, T)
    return (error * mask).sum(1) / mask.sum(1).clamp(min=1)


def align(head: AlignmentHead, x0: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """1 - cosine (B,) of the mapped latents of each text and its target (B, d).

    REPA, Yu et al. 2025, arXiv:2410.06940; VA-VAE, Yao et al. 2025, arXiv:2501.01423, here without its margin.
    """
    return 1 - F.cosine_similarity(head(x0, mask).float(), target.float(), dim=-1)

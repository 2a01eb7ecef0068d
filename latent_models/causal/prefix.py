"""Vectors for a language model, made from latents and their noise level: the prefix of a causal one.

A prefix is read by every layer as if it were tokens: Li & Liang 2021, arXiv:2101.00190; of one vector of a text as a
prefix: Mokady et al. 2021, arXiv:2111.09734. The noise level tells the language model how far to trust the latents.

Shapes: B texts, L latents of D channels, k prefix vectors a latent of the width of the language model W, P = L k.
An encoder-decoder reads the same vectors through its cross-attention, see memory_decoder. Cross-attention that can be
added to some causal models (GPT-2) is not used: their pretrained weights have none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HIDDEN = 1024  # channels
LEVELS = 16  # cosines that encode the noise level
SCALE = 0.1  # of a prefix vector's elements at the start; it is learned
FEW_LATENTS, PER_FEW = 8, 4  # texts of so few latents have so many prefix vectors a latent, others one


def default_prefix_tokens(length: int) -> int:
    """Prefix vectors of each of `length` latents."""
    return PER_FEW if length <= FEW_LATENTS else 1


class PrefixNetwork(nn.Module):
    """An MLP (z (B, L, D), sigma (B,)) -> (B, P, W) that all latents share; each has a position of its own."""

    def __init__(self, length: int, dim: int, width: int, per_latent: int | None = None, hidden: int = HIDDEN) -> None:
        """length: L. dim: D. width: W. per_latent: k, None for default_prefix_tokens."""
        super().__init__()
        self.length, self.per_latent, self.width = length, per_latent or default_prefix_tokens(length), width
        self.latents = nn.Linear(dim, hidden)
        self.level = nn.Linear(LEVELS, hidden, bias=False)
        self.positions = nn.Parameter(torch.zeros(length, hidden))
        self.output = nn.Linear(hidden, self.per_latent * width)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.tensor(SCALE))

    @property
    def num_tokens(self) -> int:
        """P, the largest number of prefix vectors of a text."""
        return self.length * self.per_latent

    @torch.no_grad()
    def start_like(self, mean: Tensor, std: Tensor) -> None:
        """Start with vectors whose channels have these means and standard deviations, both (W,)."""
        self.norm.weight.copy_(std)
        self.norm.bias.copy_(mean)
        self.scale.fill_(1.0)

    def forward(self, latents: Tensor, mask: Tensor | None, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prefix vectors (B, P, W), and their mask (B, P), None where all are valid.

        latents: z = sqrt(1 - sigma^2) x0 + sigma eps, (B, L, D). mask: (B, L) bool, True at latents of the text; None:
        everywhere. sigma: (B,) in [0, 1]. The vectors of a text with fewer latents are the last ones, as a prompt that
        is padded on the left, so that a text does not depend on those it is batched with.
        """
        if mask is not None:
            order = mask.long().sort(dim=1, stable=True).indices  # valid ones last, in their order
            latents, positions = latents.gather(1, order[..., None].expand_as(latents)), self.positions[order]
            mask = mask.gather(1, order)
        else:
            positions = self.positions[: latents.shape[1]]
        level = self.level(encode_level(sigma).to(latents.dtype))[:, None]  # (B, 1, hidden)
        hidden = nn.functional.gelu(self.latents(latents) + level + positions)  # (B, L, hidden)
        prefix = self.norm(self.output(hidden).unflatten(-1, (self.per_latent, self.width))) * self.scale
        return prefix.flatten(1, 2), None if mask is None else mask.repeat_interleave(self.per_latent, 1)


def encode_level(sigma: Tensor) -> Tensor:
    """cos(pi i sigma), i = 0 to LEVELS - 1, the cosine basis on [0, 1]: (B,) -> (B, LEVELS) float32."""
    return torch.cos(math.pi * torch.arange(LEVELS, device=sigma.device) * sigma.float()[:, None])

"""A classifier of noised latents of any space, which guides a sampler towards a label.

    z_t (B, L, d), noise level, mask -> logits (B, classes)

It is smooth in z_t, so that a sampler can follow its gradient: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4; on
text Li et al. 2022 (Diffusion-LM), arXiv:2205.14217, section 5.
Differs from the published code, which has a separate token table and so classifies vectors that it was not trained
on: the input here is the latents of the diffusion model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import HEAD_DIM, attention_dtype, check_heads, mask_bias
from model.blocks import TimeEmbedding, TransformerBackbone
from model.conditions import check_length
from model.options import ClassifierOptions
from utils.errors import UserError


class LatentClassifier(nn.Module):
    """A small transformer, modulated by the noise level."""

    def __init__(self, latent_dim: int, max_len: int, num_classes: int, options: ClassifierOptions) -> None:
        """latent_dim: d. max_len: longest latent. Raises UserError if there are fewer than two classes."""
        super().__init__()
        if num_classes < 2:
            raise UserError(f"a classifier needs at least two labels, but the corpus has {num_classes}: use another")
        dim = options.classifier_dim
        check_heads(dim, HEAD_DIM, "--classifier_dim")
        self.max_len, self.num_classes, self.pooling = max_len, num_classes, options.classifier_pooling
        self.time_embedding = TimeEmbedding(dim)
        self.time_to_token = nn.Linear(4 * dim, dim)
        self.input_proj = nn.Linear(latent_dim, dim)
        self.positions = nn.Embedding(max_len, dim)
        self.trunk = TransformerBackbone(
            dim,
            options.classifier_depth,
            time_dim=4 * dim,
            cross=False,
            dropout=options.classifier_dropout,
            skips=0,
            pairing="unet",
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, z: Tensor, time: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of z_t (B, L, d) at noise level `time`, (B,) or (1,), the time input of the denoiser.

        mask: (B, L) bool, None where every position is text; values at padding have no effect.
        """
        length = z.shape[1]
        check_length(length, self.max_len)
        time_vector = self.time_embedding(time)  # (B, 4 D)
        x = self.input_proj(z) + self.positions.weight[:length] * self.positions.embedding_dim**-0.5
        x = x + self.time_to_token(time_vector)[:, None, :]
        bias = None if mask is None else mask_bias(mask, mask, attention_dtype(z))
        x = self.norm(self.trunk(x, time_vector, bias))  # (B, L, D)
        return self.head(self.pooled(x, mask))

    def pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, D) -> (B, D)."""
        if self.pooling == "first":
            return x[:, 0]
        if mask is None:
            return x.mean(1)
        text = torch.where(mask[..., None], x, 0)
        return text.sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(x.dtype)

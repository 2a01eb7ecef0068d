"""The drafter: a small network that writes all tokens of a text at once, for the language model to verify.

A latent holds the whole text, so nothing has to be written in turn: learned queries, one for each place of a text,
attend to what the autoencoder's decoder makes of the latents, and the language model's own output layer names tokens.

    memory (B, L, d_lm)  ->  hidden (B, T, d_lm)  ->  ids (B, T)

Its errors cost time and never change a text (writing/verifying). Knows neither noise nor what the memory was made of.
Shapes: B texts, L latents, T tokens, d_lm channels of the language model, V words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.cross_entropy import LOGITS_AT_ONCE, token_nll
from latent_models.options import DrafterOptions
from latent_models.output_layer import output_layer
from model.attention import attend, check_heads, split_heads

HEAD_DIM = 32  # half of the denoiser's: a drafter is narrow


class DraftAttention(nn.Module):
    """A pre-norm branch: places attend to each other, or to the memory, which is normed already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)  # keys first, then values
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """x: (B, T, d); memory: (B, L, d), x itself if None. Returns (B, T, d)."""
        x = self.norm(x)
        k, v = self.kv(x if memory is None else memory).chunk(2, dim=-1)
        q, k, v = (split_heads(y, HEAD_DIM) for y in (self.q(x), k, v))  # (B, H, T or L, head)
        return self.out(attend(q, k, v))


class DraftBlock(nn.Module):
    """To the memory first, since the queries of the first block are the same for every text; then to each other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cross = DraftAttention(dim)
        self.attention = DraftAttention(dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.cross(x, memory)
        x = x + self.attention(x)
        return x + self.down(F.relu(self.up(self.norm(x))))  # on a CPU gelu would take a seventh of all the time


class Drafter(nn.Module):
    """All tokens of a text from its memory."""

    def __init__(self, dim_lm: int, max_seq_len: int, options: DrafterOptions) -> None:
        """dim_lm: width of the language model. max_seq_len: longest text, in tokens."""
        super().__init__()
        dim = options.drafter_dim or default_dim(dim_lm)
        check_heads(dim, HEAD_DIM, "--drafter_dim")
        self.queries = nn.Parameter(torch.randn(max_seq_len, dim))
        self.input_proj = nn.Linear(dim_lm, dim)
        self.input_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(DraftBlock(dim) for _ in range(options.drafter_depth))
        self.norm = nn.LayerNorm(dim)
        self.output_proj = nn.Linear(dim, dim_lm)

    @property
    def max_seq_len(self) -> int:
        return len(self.queries)

    def forward(self, memory: Tensor) -> Tensor:
        """memory: (B, L, d_lm). Returns (B, T, d_lm), T = max_seq_len, what the output layer takes."""
        memory = self.input_norm(self.input_proj(memory))
        x = self.queries.expand(len(memory), -1, -1)  # (B, T, d)
        for block in self.blocks:
            x = block(x, memory)
        return self.output_proj(self.norm(x))

    @torch.no_grad()
    def ids(self, model: Any, memory: Tensor) -> Tensor:
        """The likeliest tokens (B, T) of each text; what follows its end means nothing. model: of the output layer."""
        weight, bias = output_layer(model)
        size = max(1, LOGITS_AT_ONCE // (self.max_seq_len * len(weight)))
        found = []
        for part in memory.split(size):
            logits = self(part).to(weight.dtype) @ weight.t()
            found.append((logits if bias is None else logits + bias).argmax(-1))
        return torch.cat(found)


def draft_nll(model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """-log p(token) of each token by itself, in nats (B, t) float32.

    hidden: (B, T, d_lm), of the drafter. labels: (B, t), t <= T.
    """
    weight, bias = output_layer(model)
    hidden = hidden[:, : labels.shape[1]]
    with torch.autocast(hidden.device.type, enabled=False):
        nll = token_nll(hidden.flatten(0, 1).to(weight.dtype), weight, bias, labels.flatten())
    return nll.view(labels.shape)


def default_dim(dim_lm: int) -> int:
    """Half the width of the language model: a draft is to cost a small part of the pass that verifies it."""
    return max(1, dim_lm // 2 // HEAD_DIM) * HEAD_DIM

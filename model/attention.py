"""Multi-head attention, its masks and relative positions.

Shapes: B texts, L queries, S keys, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.dropout import dropout as drop
from utils.errors import UserError
from utils.kernels import by_products

HEAD_DIM = 64  # as in the published implementation


def check_heads(width: int, head_dim: int, what: str) -> int:
    """The number of heads. UserError with `what` ("--tx_dim") and the nearest valid widths, if width is no multiple."""
    if width > 0 and width % head_dim == 0:
        return width // head_dim
    below = max(width, 0) // head_dim * head_dim
    nearest = f"{below} or {below + head_dim}" if below else f"{head_dim}"
    raise UserError(f"{what} is {width}, which is not a multiple of the attention head size {head_dim}: use {nearest}")


def attention_dtype(x: Tensor) -> torch.dtype:
    """The dtype that queries will have: autocast's dtype if it is enabled, else that of x."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def for_products(x: Tensor) -> Tensor:
    """x in the dtype that matrix products will have. Each layer on its own would convert it under autocast."""
    return x.to(attention_dtype(x))


def mask_bias(query_mask: Tensor, key_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Bias of the attention scores: 0 where query and key are both text, else a large negative number.

    query_mask: (B, L), key_mask: (B, S), bool. Returns (B, 1, L, S).
    Rows of padding queries are constant, which is uniform attention over all keys, as in the published code. With a
    boolean mask such rows would be 0 or nan, depending on the kernel.
    """
    visible = query_mask[:, None, :, None] & key_mask[:, None, None, :]
    lowest = torch.finfo(dtype).min / 2  # half, so that score + bias cannot overflow to -inf
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, lowest)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(head size) + bias) v, heads merged: (B, H, L, head) x (B, H, S, head) -> (B, L, H * head).

    bias: broadcastable to (B, H, L, S); boolean (True is visible) or added to the scores.
    """
    if by_products(q, k, dropout):
        out = attend_by_products(q, k, v, bias, dropout)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return rearrange(out, "b h l d -> b l (h d)")


def attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """scaled_dot_product_attention as two batched matrix products; arguments and result as there: (B, H, L, head).

    scale: of the scores; None: 1 / sqrt(head size). The softmax is in the wider dtype of q and bias.
    """
    rows, heads, length, width = q.shape
    q = q * (width**-0.5 if scale is None else scale)
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(rows, heads, length, -1)
    if bias is not None:
        scores = scores.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else scores + bias
    weights = drop(scores.softmax(-1), dropout).to(v.dtype).flatten(0, 1)
    return torch.bmm(weights, v.flatten(0, 1)).view(rows, heads, length, -1)


def split_heads(x: Tensor, head_dim: int = HEAD_DIM) -> Tensor:
    """(B, L, H * head) -> (B, H, L, head)."""
    return rearrange(x, "b l (h d) -> b h l d", d=head_dim)


class Attention(nn.Module):
    """Pre-norm self-attention, or cross-attention to a memory. Vaswani et al. 2017, arXiv:1706.03762; no biases.

    The memory is not normalised.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, memory: Tensor | None = None) -> Tensor:
        """x: (B, L, D); bias: broadcastable to (B, H, L, S); memory: (B, S, D), x itself if None. Returns (B, L, D)."""
        x = for_products(self.norm(x))
        memory = x if memory is None else for_products(memory)
        q, k, v = (split_heads(y) for y in (self.q(x), self.k(memory), self.v(memory)))  # (B, H, L or S, 64)
        return self.out(attend(q, k, v, bias, self.dropout if self.training else 0.0))


def position_buckets(length: int, buckets: int, max_distance: int, device: torch.device | str | None = None) -> Tensor:
    """Bucket of each (query, key) pair by key - query: (length, length), in 0..buckets - 1.

    Half of the buckets is for keys after the query. In each half, small distances have a bucket each; larger ones share
    buckets whose width grows logarithmically up to max_distance. Raffel et al. 2020, arXiv:1910.10683, section 2.1.
    """
    half = buckets // 2
    exact = half // 2
    position = torch.arange(length, device=device)
    offset = position[None, :] - position[:, None]  # key - query
    distance = offset.abs()
    growth = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


class RelativePositions(nn.Module):
    """A learned bias by distance, one table for all layers, scaled by sqrt(head size) as in the published code."""

    BUCKETS = 32
    MAX_DISTANCE = 128

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(self.BUCKETS, heads)

    def forward(self, length: int) -> Tensor:
        """Returns (1, H, length, length), to add to the scores."""
        bucket = position_buckets(length, self.BUCKETS, self.MAX_DISTANCE, self.table.weight.device)
        return (self.table(bucket) * math.sqrt(HEAD_DIM)).permute(2, 0, 1)[None]

"""From points back to tokens: logits tied to a table of embeddings, their cross-entropy, and the nearest embedding.

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217, section 4.2: p(w | x0) is a softmax over the embeddings that made x0.
Knows tables and points; no tokenizer, no noise. Shapes: N or (B, L) points, V vocabulary, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 25  # numbers of a block of scores: 128 MiB in float32


def inner_product(x: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """x . e_w + b_w: (..., D), (V, D), (V,) -> (..., V)."""
    return F.linear(x, table, bias)


def negative_distance(x: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    """b_w - |x - e_w|^2: what is nearest is likeliest.

    Differs from DiffuSeq, which takes the distance itself: squared, it is the posterior of Gaussian clusters.
    """
    crossed = F.linear(x, 2 * table, bias - table.square().sum(-1))
    return crossed - x.square().sum(-1, keepdim=True)


Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
LOGITS: dict[str, Logits] = {"inner": inner_product, "distance": negative_distance}


def _rows(vocabulary: int) -> int:
    """Points whose scores fit into one block."""
    return max(1, CHUNK // vocabulary)


def token_nll(x: Tensor, ids: Tensor, table: Tensor, bias: Tensor, logits: Logits = inner_product) -> Tensor:
    """-log p(ids | x) by position, in nats: (B, L, D), (B, L) -> (B, L), float32.

    Where scores of the whole batch would not fit into one block, they are made block by block and, for the gradient,
    once more: B L V numbers never stand in memory at once.
    """
    points, wanted = x.flatten(0, 1), ids.flatten()

    def block(part: Tensor, target: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        return F.cross_entropy(logits(part, table, bias).float(), target, reduction="none")

    size = _rows(len(table))
    if len(points) <= size:
        return block(points, wanted, table, bias).view(ids.shape)
    parts = [
        checkpoint(block, part, target, table, bias, use_reentrant=False)
        for part, target in zip(points.split(size), wanted.split(size), strict=True)
    ]
    return torch.cat(parts).view(ids.shape)


@torch.no_grad()
def likeliest(x: Tensor, table: Tensor, bias: Tensor, logits: Logits = inner_product) -> Tensor:
    """The token of highest probability: (..., D) -> (...) int64."""
    blocks = x.reshape(-1, x.shape[-1]).split(_rows(len(table)))
    return torch.cat([logits(block, table, bias).argmax(-1) for block in blocks]).view(x.shape[:-1])


@torch.no_grad()
def nearest(x: Tensor, table: Tensor) -> Tensor:
    """The token whose embedding is nearest in Euclidean distance: (..., D) -> (...) int64.

    In full precision whatever autocast says: in half, neighbours of a large vocabulary are confused.
    """
    with torch.autocast(x.device.type, enabled=False):
        return likeliest(x.float(), table.float(), x.new_zeros(len(table), dtype=torch.float32), negative_distance)

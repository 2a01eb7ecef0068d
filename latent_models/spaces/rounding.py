"""From points to tokens: a softmax tied to a table of embeddings, and the nearest embedding.

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217, section 4.2: p(w | x0) is a softmax over the embeddings.
No tokenizer, no noise. Shapes: V vocabulary, D channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_models.cross_entropy import MAX_LOGITS

Head = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # table (V, D), bias (V,) -> weight and bias of a linear layer


def inner_product(table: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x . e_w + b_w."""
    return table, bias


def negative_distance(table: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """b_w - |x - e_w|^2 without |x|^2, which is equal for all tokens: the nearest token is the likeliest.

    Differs from DiffuSeq, which takes the distance itself: squared, it is the posterior of Gaussian clusters.
    """
    return 2 * table, bias - table.square().sum(-1)


ROUNDING_HEADS: dict[str, Head] = {"inner": inner_product, "distance": negative_distance}


@torch.no_grad()
def argmax_token(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The token of highest score: (..., D) -> (...) int64. Scores are computed for some points at a time.

    In float32 also under autocast: half precision confuses neighbors in a large vocabulary.
    """
    blocks = x.reshape(-1, x.shape[-1]).split(max(1, MAX_LOGITS // len(weight)))
    with torch.autocast(x.device.type, enabled=False):
        weight, bias = weight.float(), bias.float()
        return torch.cat([F.linear(block.float(), weight, bias).argmax(-1) for block in blocks]).view(x.shape[:-1])


@torch.no_grad()
def nearest_token(x: Tensor, table: Tensor) -> Tensor:
    """The token whose embedding is nearest in Euclidean distance: (..., D) -> (...) int64."""
    table = table.float()
    return argmax_token(x, *negative_distance(table, table.new_zeros(len(table))))

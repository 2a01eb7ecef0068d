"""Attention of language models of transformers, by the kernels that the process chose (utils/kernels)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model.attention import attend_by_products
from utils.kernels import by_products

NAME = "chosen_kernels"  # of this implementation, among those of transformers
BOOLEAN_MASKS = ("sdpa", NAME)  # implementations whose masks are boolean
SPECIAL = ("cache", "softcap")  # arguments that only the attention of transformers understands


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The interface of transformers: (B, H, L, head) -> (B, L, H, head), None. Its sdpa, unless products are faster.

    Keys and values may have fewer rows than queries: of the K beams of a text, which share them
    (generation/cache.SharedLayer).
    """
    rows, heads, length, width = query.shape
    beams = rows // len(key)
    if beams > 1:
        query = query.view(-1, beams, heads, length, width).transpose(1, 2).flatten(2, 3)  # (B, H, K * L, head)
        attention_mask = None if attention_mask is None else _of_texts(attention_mask, beams)
    out = _attention(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    return (out if beams == 1 else out.reshape(rows, length, heads, width)), None


def _of_texts(mask: Tensor, beams: int) -> Tensor:
    """The mask (B * K, 1, L, S) of all beams as one of texts, (B, 1, 1 or K * L, S)."""
    rows, _, length, keys = mask.shape
    return mask[::beams] if length == 1 else mask.reshape(rows // beams, 1, beams * length, keys)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float,
    scaling: float | None, is_causal: bool | None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    causal = mask is None and query.shape[2] > 1 and bool(module.is_causal if is_causal is None else is_causal)
    special = query.shape[1] != key.shape[1] or any(kwargs.get(x) is not None for x in SPECIAL)
    if special or not by_products(query, key, dropout):
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, is_causal, **kwargs)[0]
    bias = _bias(query, key, mask, causal, kwargs.get("position_bias"))
    return attend_by_products(query, key, value, bias, dropout, scaling).transpose(1, 2).contiguous()


def _bias(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, position_bias: Tensor | None) -> Tensor | None:
    """Mask, causal attention and T5's bias by distance in one, (B or 1, H or 1, L, S): boolean, or added to the scores.

    Queries that see no key attend to all of them where there is a bias by distance, as in transformers.
    """
    if causal:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if position_bias is None or mask is None:
        return mask if position_bias is None else position_bias
    if mask.dtype != torch.bool:
        return position_bias + mask
    return position_bias.masked_fill(~mask, torch.finfo(query.dtype).min)


def choose_kernels(model: Any) -> None:
    """Let a model of transformers that uses sdpa use `attention` instead."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


def chooses_kernels(model: Any) -> bool:
    """Whether a model of transformers uses `attention`."""
    return model.config._attn_implementation == NAME


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)

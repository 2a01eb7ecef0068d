"""Attention of short texts on a CPU, as two batched products in float32.

The fused kernel of torch is made for long sequences: with these products, a training step of SmolLM2-135M with LoRA
took .86 of the processor time (16 captions of 21 tokens, one thread, bfloat16). Transformers' plain attention ("eager")
is as fast, but rounds the scores to bfloat16 before their softmax, which turns gradients away from those in float32
(SmolLM2-135M, before training: to a cosine of .2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "short_texts_in_float32"
LONGEST = 128  # tokens; products take memory of their square


def short_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, d), key and value (B, G, T, d), mask (B, 1, T, T) bool or None for causal -> (B, T, H, d)."""
    if any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "cache", "s_aux")):
        made: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return made
    groups = query.shape[1] // key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = query.float(), key.float(), value.float()
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = q @ k.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if attention_mask is None:
            attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1), dropout, module.training)
        out = weights @ v
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(NAME, short_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


@contextmanager
def short_texts(model: Any) -> Iterator[None]:
    """Context manager: a model of transformers attends by short_attention, if its family exchanges attention."""
    config = model.config
    before = config._attn_implementation
    if before != "sdpa" or not getattr(model, "_supports_attention_backend", False):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before

"""A frozen model whose linear layers are held in half precision, too: autocast would cast their weights at every step.

Only linear layers compute in half precision under autocast; embeddings and norms stay those of the model, so that a
result is the same to the bit.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

import torch
from torch import nn


class HalfPrecisionCopy:
    """The copy of one model, made at its first use, and again when the weights or their device have changed."""

    def __init__(self) -> None:
        self._made: tuple[Any, Any] | None = None  # version of the weights, copy

    def of(self, model: Any, dtype: torch.dtype) -> Any:
        """model: in float32, without gradients."""
        version = (id(model), dtype, [(id(p), p._version, p.device) for p in model.parameters()])
        if self._made is None or self._made[0] != version:
            first, (copied, size) = self._made is None, copy_linear_layers(model, dtype)
            self._made = version, copied
            if first:
                name = str(dtype).removeprefix("torch.")
                print(f"note: the frozen language model is also held in {name}: {size / 1e6:,.0f} MB", file=sys.stderr)
        return self._made[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> HalfPrecisionCopy:
        return HalfPrecisionCopy()


def copy_linear_layers(model: Any, dtype: torch.dtype) -> tuple[Any, int]:
    """A copy that shares all tensors with the model but those of linear layers; and the bytes of these."""
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    copied, size = deepcopy(model, shared), 0
    for layer in copied.modules():
        if isinstance(layer, nn.Linear):
            for name, p in layer.named_parameters(recurse=False):
                half = nn.Parameter(p.detach().to(dtype), requires_grad=False)
                setattr(layer, name, half)
                size += half.numel() * half.element_size()
    return copied, size

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

    def __init__(self, what: str = "language model") -> None:
        """what: a frozen one, in a message."""
        self._what = what
        self._made: tuple[Any, Any] | None = None  # version of the weights, copy

    def of(self, model: Any, dtype: torch.dtype) -> Any:
        """model: in float32, without gradients."""
        version = (id(model), dtype, [(id(p), version_of(p), p.device) for p in model.parameters()])
        if self._made is None or self._made[0] != version:
            first, (copied, size) = self._made is None, copy_linear_layers(model, dtype)
            self._made = version, copied
            if first:
                name, megabytes = str(dtype).removeprefix("torch."), f"{size / 1e6:,.0f} MB"
                print(f"note: the frozen {self._what} is also held in {name}: {megabytes}", file=sys.stderr)
        return self._made[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> HalfPrecisionCopy:
        return HalfPrecisionCopy(self._what)


def half_dtype(kind: str) -> torch.dtype | None:
    """The dtype of autocast on this kind of device, if that is half precision; None without autocast."""
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return None
    dtype = torch.get_autocast_dtype(kind)
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def version_of(p: torch.Tensor) -> int:
    """How often a tensor has been written to; torch does not count that of inference mode."""
    return 0 if p.is_inference() else p._version


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear: GPT-2 has a class of its own for transposed weights."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


@torch.inference_mode(False)  # a copy that is made inside it could not be used in training
def copy_linear_layers(model: Any, dtype: torch.dtype) -> tuple[Any, int]:
    """A copy that shares all tensors with the model but those of linear layers; and the bytes of these."""
    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    copied, size = deepcopy(model, shared), 0
    for layer in filter(is_linear, copied.modules()):
        for name, p in layer.named_parameters(recurse=False):
            half = nn.Parameter(p.detach().to(dtype), requires_grad=False)
            setattr(layer, name, half)
            size += half.numel() * half.element_size()
    return copied, size

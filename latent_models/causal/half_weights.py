"""Frozen weights of linear layers in half precision, beside the full ones: autocast would cast them at every step.

The adapters between them stay in float32 and train. A result is that of autocast, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from latent_models.half_precision import half_dtype, is_linear, version_of


class HalfWeights:
    """The half-precision weights of one model, made at their first use, and again when these have changed."""

    def __init__(self) -> None:
        self._made: tuple[Any, list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]] | None = None

    @contextmanager
    def used(self, model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
        """Context manager: the frozen linear layers of the model compute with their half-precision weights.

        The parameters themselves are exchanged, since the backward pass reads those that the forward pass had.
        """
        device = next(model.parameters()).device
        frozen = [(id(p), version_of(p)) for p in model.parameters() if not p.requires_grad]
        version = (id(model), dtype, device, frozen)
        if self._made is None or self._made[0] != version:
            self._made = version, _halves(model, dtype)
        for layer, name, _, half in self._made[1]:
            layer._parameters[name] = half
        try:
            yield
        finally:
            for layer, name, full, _ in self._made[1]:
                layer._parameters[name] = full

    def under_autocast(self, model: nn.Module) -> AbstractContextManager[None]:
        """As `used`, in the dtype of autocast; without autocast, nothing is exchanged."""
        dtype = half_dtype(next(model.parameters()).device.type)
        return nullcontext() if dtype is None else self.used(model, dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> HalfWeights:
        return HalfWeights()


@torch.inference_mode(False)  # halves that are made inside it could not be used in training
def _halves(model: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]]:
    return [
        (layer, name, p, nn.Parameter(p.detach().to(dtype), requires_grad=False))
        for layer in model.modules()
        if is_linear(layer)
        for name, p in layer.named_parameters(recurse=False)
        if not p.requires_grad
    ]

"""Linear layers as plain functions of their weights, several with the same input as one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Projection:
    """x -> x W^T + b, with the weights at its creation."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def of(cls, *layers: nn.Linear) -> Projection:
        """One layer as it is; of several, a copy, whose outputs come one after the other."""
        if len(layers) == 1:
            return cls(layers[0].weight, layers[0].bias)
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        return cls(torch.cat(weights), torch.cat(biases) if biases else None)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

"""Training and evaluation mode of modules that may have frozen parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def train_mode(module: nn.Module) -> None:
    """Set training mode, except in submodules that are wholly frozen: dropout in a frozen model would be noise."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Context manager: evaluation mode without gradients; afterwards the mode of each submodule is restored."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training

"""Tensors from one device to another, so that the host goes on meanwhile. Knows nothing of what they hold."""

from __future__ import annotations

import torch
from torch import Tensor

PINNED_FROM = 2**16  # bytes; what is smaller, the driver of a GPU takes at once


def moved(x: Tensor, device: torch.device | str) -> Tensor:
    """x on a device.

    To a GPU of CUDA the host does not wait: what is large goes through pinned memory, since a copy out of any other
    begins only when the GPU has come that far. To the CPU it waits: whoever asks is going to look. To others, too:
    such a copy to MPS may read memory that has become someone else's (torch's issue 189690).
    """
    kind = torch.device(device).type
    if kind == "cuda" and x.device.type == "cpu" and x.nbytes >= PINNED_FROM:
        x = x.pin_memory()
    return x.to(device, non_blocking=kind == "cuda")

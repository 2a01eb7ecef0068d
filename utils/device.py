"""Copies of tensors between devices that do not block the host."""

from __future__ import annotations

import torch
from torch import Tensor

PINNED_FROM = 2**16  # bytes; the CUDA driver copies smaller tensors at once


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """x on a device.

    To CUDA the host does not wait: large tensors go through pinned memory, since a copy from pageable memory starts
    only when the GPU has reached it. To the CPU it waits, because the values are read next. To other devices too: a
    non-blocking copy to MPS may read memory that has been reused (torch issue 189690).
    """
    kind = torch.device(device).type
    if kind == "cuda" and x.device.type == "cpu" and x.nbytes >= PINNED_FROM:
        x = x.pin_memory()
    return x.to(device, non_blocking=kind == "cuda")

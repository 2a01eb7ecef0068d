"""Memory of the GPU that this process holds for nothing."""

from __future__ import annotations

import gc
import sys


def release_device_memory() -> None:
    """Give the GPU memory of tensors that nobody uses back, so that other processes can have it.

    torch keeps what tensors leave for the next ones, and tensors in cycles of references, such as those of an optimizer
    and its hooks, stay until they are collected.
    """
    gc.collect()
    torch = sys.modules.get("torch")  # a process that never imported it holds nothing
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

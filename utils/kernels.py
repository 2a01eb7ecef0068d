"""Kernel choices of the process: attention, dropout, TF32, and the memory of freed tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.malloc import keep_freed_memory
from utils.options import KernelOptions

# On a CPU in half precision, torch's fused attention loses to two matrix products and a softmax: its backward by a
# factor of 2 to 6, and its forward mostly, too (benchmarks/attention_kernels.py). With fewer scores than this (texts *
# heads * queries * keys) it saves calls.
FUSED_SCORES = 5000

_chosen: KernelOptions | None = None  # in this process; None: the defaults

# Never cuDNN's attention, which torch prefers on sm90 and sm100: its backward gives nan where a padded query's
# logsumexp is below -88.7, as with the bias of model/attention, and it builds a plan for every new shape while
# decoding. It is off as soon as a network of ours is imported, and whenever a run is loaded.
torch.backends.cuda.enable_cudnn_sdp(False)


def set_kernels(options: KernelOptions, device: torch.device, *, unless_set: bool = False) -> None:
    """Set attention and dropout kernels, TF32 and the reuse of freed memory for this process.

    unless_set: leave what a program of this process has set before, as when training loads another run.
    """
    global _chosen
    torch.backends.cuda.enable_cudnn_sdp(False)
    if unless_set and _chosen is not None:
        return
    _chosen = options
    fused = options.attention != "plain"
    torch.backends.cuda.enable_flash_sdp(fused)  # the switch of the CPU's fused kernel, too
    torch.backends.cuda.enable_mem_efficient_sdp(fused)
    torch.backends.cuda.enable_math_sdp(True)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    if options.freed_memory == "keep" and device.type == "cpu":
        keep_freed_memory()


def by_products(q: Tensor, k: Tensor, dropout: float = 0.0) -> bool:
    """Whether attention is faster as matrix products than in torch's kernel: q (B, H, L, head), k (B, H, S, head).

    Always False where the choice is not left to us (--config attention=fused or plain), and on other devices than CPUs.
    """
    if q.device.type != "cpu" or _options().attention != "auto":
        return False
    compiled = torch.compiler.is_compiling()  # then a call costs nothing, and softmax, scale and dropout are one loop
    if dropout and (compiled or _options().dropout == "bits"):
        return True
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    return q.dtype in (torch.bfloat16, torch.float16) and (compiled or scores >= FUSED_SCORES)


def dropout_by_bits(x: Tensor) -> bool:
    """Whether dropout masks are made of random bits: on a CPU, where torch draws a uniform number for each element."""
    return x.device.type == "cpu" and _options().dropout == "bits" and not torch.compiler.is_compiling()


def _options() -> KernelOptions:
    return _chosen or KernelOptions()

"""How numbers are computed, process-wide, and networks compiled where that pays. Knows nothing of what they are for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from utils.errors import fold
from utils.heap import keep_freed_memory
from utils.options import KernelOptions

# one graph each for: training, estimates of self-conditioning, validation, and two kinds of sampling steps, at every
# size of batch; beyond it torch goes on without compiling
GRAPHS = 64
_in_graphs: WeakSet[nn.Module] = WeakSet()


def use(options: KernelOptions, device: torch.device) -> None:
    """Choose the kernels of this process, and what becomes of memory that tensors leave."""
    fused = options.attention == "fused"
    torch.backends.cuda.enable_flash_sdp(fused)  # the switch of the CPU's fused kernel, too
    torch.backends.cuda.enable_mem_efficient_sdp(fused)
    torch.backends.cuda.enable_cudnn_sdp(fused)
    torch.backends.cuda.enable_math_sdp(True)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    if options.freed_memory == "keep" and device.type == "cpu":
        keep_freed_memory()


def compiles(flag: str, device: torch.device) -> bool:
    """Whether --compile asks for it here: on a CPU it gains a few percent after half a minute's wait."""
    return flag == "on" or (flag == "auto" and device.type == "cuda")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compile_network(
    network: nn.Module,
    flag: str,
    device: torch.device,
    say: Callable[[str], None] = _to_stderr,
    *,
    part: bool = False,
) -> nn.Module:
    """The same module, compiled at its first call if --compile (flag) asks for it; names and weights stay as they are.

    On CUDA into CUDA graphs, one for every shape: callers keep shapes static. Where compiling fails, say() is told in
    one line and the module computes as it would have without. Dropout draws other numbers than without compiling.
    part: the network is one of several in a step, or meets batches of many shapes where it does not train: then it is
    compiled for training alone, and not into graphs.
    """
    if not compiles(flag, device):
        return network
    mode = "reduce-overhead" if device.type == "cuda" and not part else "default"
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    plain = network._call_impl
    fast = torch.compile(plain, mode=mode, dynamic=False)
    works: bool | None = None  # unknown until the first call
    if mode == "reduce-overhead":
        _in_graphs.add(network)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal works
        if works is False or (part and not network.training):
            return plain(*args, **kwargs)
        try:
            result = fast(*args, **kwargs)
        except Exception as error:
            if works and not _of_the_compiler(error):
                raise
            works = False
            _in_graphs.discard(network)
            result = plain(*args, **kwargs)  # first: what is wrong with the call itself is raised as it is
            say(
                f"note: torch.compile failed ({_short(error)}): going on without it; --compile off keeps it from trying"
            )
            return result
        works = True
        # what is kept over calls, as a sampler keeps estimates, must not lie in a graph's own memory
        return result if torch.is_grad_enabled() or mode == "default" else result.clone()

    network._compiled_call_impl = call  # what Module.compile() sets, with a way back
    return network


def in_graphs(module: nn.Module) -> bool:
    """Whether a part of it runs in CUDA graphs: gradients may then lie in a graph's memory, which the next one reuses.

    Also those of what is not compiled itself, since some operations hand on the gradient that they were given.
    """
    return any(part in _in_graphs for part in module.modules())


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Within, a network computes as without compile_network: on a batch of a size that hardly comes again."""
    held = [(part, part._compiled_call_impl) for part in network.modules() if part._compiled_call_impl is not None]
    for part, _ in held:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in held:
            part._compiled_call_impl = call


def _of_the_compiler(error: Exception) -> bool:
    return any(c.__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) for c in type(error).__mro__)


def _short(error: Exception) -> str:
    text = fold(error) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

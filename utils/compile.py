"""torch.compile of networks, with a fallback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch._functorch.config
from torch import nn

from utils.errors import one_line_text

# CUDA graphs are made for training, self-conditioning estimates, validation, and two kinds of sampling steps, at each
# batch size; beyond this number torch runs uncompiled
MAX_GRAPHS = 64
_in_cuda_graphs: WeakSet[nn.Module] = WeakSet()


def should_compile(flag: str, device: torch.device) -> bool:
    """Whether --compile applies on this device. auto: on CUDA; on a CPU it gains a few percent after half a minute."""
    return flag == "on" or (flag == "auto" and device.type == "cuda")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compile_network(
    network: nn.Module,
    flag: str,
    device: torch.device,
    log: Callable[[str], None] = _to_stderr,
    *,
    part: bool = False,
) -> nn.Module:
    """Compile the module at its first call if --compile (flag) applies; returns it, with names and weights unchanged.

    On CUDA it uses CUDA graphs, one for every shape: callers keep shapes static. Where compiling fails, in the forward
    or the backward, it prints one line by log() and runs uncompiled. Dropout draws other numbers than uncompiled.
    part: the network is one of several in a step, or gets batches of many shapes outside training: then it is compiled
    for training alone, and without CUDA graphs.
    """
    if not should_compile(flag, device):
        return network
    mode = "reduce-overhead" if device.type == "cuda" and not part else "default"
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_GRAPHS)
    # the backward is compiled with the forward, where a compiler error can be caught, not at the first loss.backward()
    torch._functorch.config.force_non_lazy_backward_lowering = True
    plain = network._call_impl
    compiled = torch.compile(plain, mode=mode, dynamic=False)
    works: bool | None = None  # None until the first call
    if mode == "reduce-overhead":
        _in_cuda_graphs.add(network)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal works
        if works is False or (part and not network.training):
            return plain(*args, **kwargs)
        try:
            result = compiled(*args, **kwargs)
        except Exception as error:
            if works and not _is_compiler_error(error):
                raise
            works = False
            _in_cuda_graphs.discard(network)
            result = plain(*args, **kwargs)  # first, so that an error of the call itself is raised as it is
            log(f"note: torch.compile failed ({_short(error)}): running uncompiled; --compile off skips the attempt")
            return result
        works = True
        # results that outlive a call, such as a sampler's estimates, must not stay in the graph's memory
        return result if torch.is_grad_enabled() or mode == "default" else result.clone()

    network._compiled_call_impl = call  # as Module.compile() does, with a fallback
    return network


def uses_cuda_graphs(module: nn.Module) -> bool:
    """Whether any submodule runs in CUDA graphs: gradients may then be in a graph's memory, which the next call reuses.

    This holds for gradients of uncompiled parts too, since some operations pass on the gradient tensor they get.
    """
    return any(part in _in_cuda_graphs for part in module.modules())


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Context manager: inside it a network runs uncompiled, for a batch of a rare size."""
    held = [(part, part._compiled_call_impl) for part in network.modules() if part._compiled_call_impl is not None]
    for part, _ in held:
        part._compiled_call_impl = None
    try:
        yield
    finally:
        for part, call in held:
            part._compiled_call_impl = call


def _is_compiler_error(error: Exception) -> bool:
    return any(c.__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) for c in type(error).__mro__)


def _short(error: Exception) -> str:
    text = one_line_text(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

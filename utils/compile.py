"""torch.compile of networks, with a fallback."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
import torch._functorch.config
from torch import nn

from utils.errors import UserError, one_line_text

# CUDA graphs are made for training, self-conditioning estimates, validation, and two kinds of sampling steps, at each
# batch size; beyond this number torch runs uncompiled
MAX_GRAPHS = 64
# on a CPU compiling takes half a minute, and a step gains a tenth to a quarter
CPU_STEPS = 10_000
_in_cuda_graphs: WeakSet[nn.Module] = WeakSet()


def should_compile(flag: str, device: torch.device, steps: int = 0) -> bool:
    """Whether --compile applies on this device.

    auto: on CUDA; on a CPU for a training of at least CPU_STEPS steps, where a compiler of C++ is found, and there for
    its steps alone, so that samples are those of a later evaluation.
    steps: number of steps of the whole training, so that a resumed one decides alike; 0: none, an evaluation.
    """
    if flag == "auto" and device.type == "cpu":
        return steps >= CPU_STEPS and has_cpp_compiler()
    return flag == "on" or (flag == "auto" and device.type == "cuda")


def needs_one_shape(flag: str, device: torch.device) -> bool:
    """Whether batches of the parts that compile_network compiles have to be padded to one length: not on a CPU."""
    return device.type != "cpu" and should_compile(flag, device)


def has_cpp_compiler() -> bool:
    """Whether the compiler of C++ that torch would call is there; on Linux alone, where it has OpenMP."""
    from torch._inductor import config  # takes a second

    named = config.cpp.cxx
    names = named if isinstance(named, (list, tuple)) else (named,)
    return sys.platform == "linux" and any(shutil.which(name) for name in names if name)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compile_network(
    network: nn.Module,
    flag: str,
    device: torch.device,
    log: Callable[[str], None] = _to_stderr,
    *,
    part: bool = False,
    steps: int = 0,
) -> nn.Module:
    """Compile the module at its first call if --compile (flag) applies; returns it, with names and weights unchanged.

    On CUDA it uses CUDA graphs, one for every shape: callers keep shapes static. Where compiling fails, in the forward
    or the backward, it prints one line by log() and runs uncompiled; a backward that fails only when it runs is for
    the training loop (switch_off). Dropout draws other numbers than uncompiled.
    part: the network is one of several in a step, or gets batches of many shapes outside training: then it is compiled
    for training alone, and without CUDA graphs; on a CPU once for batches of all lengths. steps: see should_compile.
    """
    if not should_compile(flag, device, steps):
        return network
    on_cpu = device.type == "cpu"
    mode = "default" if on_cpu or part else "reduce-overhead"
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MAX_GRAPHS)
    # the backward is compiled with the forward, where a compiler error can be caught, not at the first loss.backward()
    torch._functorch.config.force_non_lazy_backward_lowering = True
    training_only = part or (on_cpu and flag == "auto")
    if on_cpu and flag == "auto":
        log("note: a long training: its networks are compiled first, up to a minute (--compile off does not)")
    # as Module.compile() does, with a fallback
    network._compiled_call_impl = _CompiledCall(network, mode, training_only, log, dynamic=part and on_cpu)
    return network


class _CompiledCall:
    """Calls a module compiled, and uncompiled once that has failed."""

    def __init__(
        self, network: nn.Module, mode: str, training_only: bool, log: Callable[[str], None], dynamic: bool
    ) -> None:
        self.network, self.mode, self.training_only, self.log = network, mode, training_only, log
        self.plain = network._call_impl
        self.compiled = torch.compile(self.plain, mode=mode, dynamic=dynamic)
        self.works: bool | None = None  # None until the first call
        if mode == "reduce-overhead":
            _in_cuda_graphs.add(network)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.works is False or (self.training_only and not self.network.training):
            return self.plain(*args, **kwargs)
        try:
            result = self.compiled(*args, **kwargs)
        except Exception as error:
            if self.works and not is_compiler_error(error):
                raise
            self.switch_off()
            result = self.plain(*args, **kwargs)  # first, so that an error of the call itself is raised as it is
            self.log(_note(error))
            return result
        self.works = True
        # results that outlive a call, such as a sampler's estimates, must not stay in the graph's memory
        return result if torch.is_grad_enabled() or self.mode == "default" else result.clone()

    def switch_off(self) -> None:
        self.works = False
        _in_cuda_graphs.discard(self.network)


def switch_off(module: nn.Module, error: Exception, *, can_repeat: bool = True) -> bool:
    """Run the module uncompiled from now on, after an error of a step; returns whether the step is to be repeated.

    False: the error is none of the compiler's, or nothing of the module is compiled. Prints one line where it is True.
    The backward is compiled with the forward, but its kernels are launched, and its CUDA graph is captured, only by
    loss.backward(). can_repeat: else it raises UserError instead, with the flag to set.
    """
    calls = [part._compiled_call_impl for part in module.modules()]
    working = [call for call in calls if isinstance(call, _CompiledCall) and call.works]
    if not working or not is_compiler_error(error):
        return False
    if not can_repeat:
        raise UserError(
            f"torch.compile failed in a backward ({_short(error)}), which one of several processes cannot repeat: "
            "add --compile off"
        ) from error
    for call in working:
        call.switch_off()
    working[0].log(_note(error))
    return True


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


# of plain RuntimeErrors: a kernel that Triton cannot launch, and an operation that a CUDA graph cannot hold
_OF_KERNELS = re.compile(r"triton error|stream is capturing|during capture|graph capture", re.IGNORECASE)


def is_compiler_error(error: Exception) -> bool:
    """Whether torch.compile raised it: while compiling, or when kernels are launched or CUDA graphs captured."""
    if any(c.__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) for c in type(error).__mro__):
        return True
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, RuntimeError) and bool(_OF_KERNELS.search(str(error)))


def _note(error: Exception) -> str:
    return f"note: torch.compile failed ({_short(error)}): running uncompiled; --compile off skips the attempt"


def _short(error: Exception) -> str:
    text = one_line_text(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0]) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

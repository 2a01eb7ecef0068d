"""What a machine can do, and what a case takes: peak arithmetic, memory bandwidth, seconds, bytes, operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput_sizes import Case


class Machine:
    """Peak speed of matrix products and copies: the best of several tries, since other processes may slow down one."""

    def __init__(self, device: torch.device, dtypes: dict[str, torch.dtype]) -> None:
        self.device, self.dtypes = device, dtypes
        self.products, self.copies = dict.fromkeys(dtypes, 0.0), 0.0

    def measure(self) -> None:
        for name, dtype in self.dtypes.items():
            self.products[name] = max(self.products[name], products_per_second(self.device, dtype))
        self.copies = max(self.copies, bytes_per_second(self.device))


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


def allocated_bytes(device: torch.device, pid: int | None = None) -> int:
    """Bytes allocated on a GPU, 0 on a CPU. Also resets the peak that peak_bytes returns.

    On a CPU only the memory of the whole process is known. pid: of another process than this one.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):  # Linux only: without it the peak is since the start of the process
        Path(f"/proc/{pid or 'self'}/clear_refs").write_text("5")
    return 0


def peak_bytes(device: torch.device, pid: int | None = None) -> int:
    """Peak of the memory in bytes since the last call of allocated_bytes; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def timed(case: Case, count: int, device: torch.device) -> float:
    """Seconds of `count` steps."""
    synchronize(device)
    began = time.perf_counter()
    case.run(count)
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def products_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Floating-point operations per second of a large matrix product: the peak of this device."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 * _rate(lambda: a @ a, device, seconds)


def bytes_per_second(device: torch.device, seconds: float = 0.5) -> float:
    """Memory bandwidth: bytes that a copy of a large tensor reads and writes per second."""
    a = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    b = torch.zeros_like(a)
    return 8 * a.numel() * _rate(lambda: a.copy_(b), device, seconds)


def _rate(fn: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Calls of fn per second."""
    for _ in range(3):
        fn()
    synchronize(device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        fn()
        synchronize(device)
        count += 1
    return count / (time.perf_counter() - began)


def count_flops(case: Case) -> float:
    """Floating-point operations of the matrix products of one step, forward and backward."""
    if case.count_flops is not None:
        return case.count_flops()
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        case.run(1)
    return float(counter.get_total_flops())


def profile(case: Case, device: torch.device, steps: int) -> str:
    """Time by kernel of some steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profiled(activities=activities) as found:
        case.run(steps)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return found.key_averages().table(sort_by=order, row_limit=30)

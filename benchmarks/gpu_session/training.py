"""What the phases of the denoiser and of the autoencoder share: losses against eager ones, and a timed, strict run."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_session.no_waiting import no_waiting
from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.throughput_machine import allocated_bytes, peak_bytes, synchronize, timed
from benchmarks.throughput_networks import Networks
from benchmarks.throughput_sizes import NUM_LOSSES, Case, Switches

Make = Callable[[Networks, str, Switches], Case]
TOLERANCE = {True: 0.02, False: 1e-3}  # of a loss, by bf16: rounding grows over the steps


def compare_losses(setting: Setting, report: Report, networks: Networks, make: Make) -> None:
    """The first losses of a compiled network against those of an eager one. The networks must have no dropout."""
    steps, losses, bf16 = setting.scale.compared_steps, {}, False
    for name, compiled in (("eager", False), ("compiled", True)):
        switches = setting.switches(networks, compiled=compiled)
        bf16 = switches.bf16
        case = make(networks, name, switches)
        began = time.perf_counter()
        case.run(steps)
        synchronize(setting.device)
        report.measure(f"first {steps} steps, {name}", time.perf_counter() - began, "s")
        losses[name] = case.losses[:steps]
        del case
        free(setting)
    largest = max(abs(b - a) / abs(a) for a, b in zip(losses["eager"], losses["compiled"], strict=True))
    shown = " ".join(f"{loss:.5g}" for loss in losses["compiled"])
    report.check(
        f"{steps} losses compiled as eager",
        all(map(math.isfinite, losses["compiled"])) and largest <= TOLERANCE[bf16],
        f"{shown}; largest relative difference {largest:.2g}, at most {TOLERANCE[bf16]}",
    )


def timed_run(setting: Setting, report: Report, case: Case, steps: int, texts: int) -> float:
    """Warm up, then run `steps` steps in which waiting for the device is an error. Returns steps per second."""
    allocated_bytes(setting.device)
    began = time.perf_counter()
    case.run(NUM_LOSSES if setting.on_gpu else 2)  # while a case records losses, it waits for the device
    synchronize(setting.device)
    report.measure("warm-up, with compilation", time.perf_counter() - began, "s")
    with no_waiting():
        rate = steps / timed(case, steps, setting.device)
    report.measure("steps per second", rate, "/s")
    report.measure("texts per second", rate * texts, "/s")
    report.measure("peak memory", peak_bytes(setting.device) / 2**30, "GiB" if setting.on_gpu else "GiB of the process")
    report.measure("trained parameters", case.parameters)
    if setting.on_gpu:
        report.check("no step waits for the device", True, f"{steps} steps with set_sync_debug_mode error")
    finite = all(map(math.isfinite, case.losses))
    report.check("losses are finite", finite, f"first {case.losses[0]:.4g}, last recorded {case.losses[-1]:.4g}")
    return rate


def free(setting: Setting) -> None:
    """Return the memory of networks that nothing refers to any more, and of their CUDA graphs."""
    torch.compiler.reset()
    gc.collect()
    if setting.on_gpu:
        torch.cuda.empty_cache()

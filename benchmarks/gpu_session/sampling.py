"""Texts by the sampler of --preset fast in few steps and by DDPM in many, decoded greedily and by beam search.

Everything runs twice: the first time compiles, and the second one must give the same latents and texts. The language
model has random weights, and ends its texts between half of the longest length and all of it (throughput_networks).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.throughput_machine import allocated_bytes, peak_bytes, synchronize
from benchmarks.throughput_networks import Networks, fill_zero_weights
from benchmarks.throughput_sampling import make_generator
from benchmarks.throughput_sizes import Switches
from pipelines.sampling.generator import TextGenerator
from utils.records import Latents

STRATEGIES = ("greedy", "beam")  # the first one is that of --preset fast
WIDE = (250, 128, 768)  # a batch of encoder states
NOISE_COSTS = 1.1  # at most this much of the time without drawing noise
# of the norm of the latents: a compiled network may differ from an eager one as much as bf16 does from float32
COMPILED_ERROR = 1.5


def run(setting: Setting, report: Report) -> None:
    networks = setting.networks()
    switches = setting.switches(networks)
    networks.set_kernels(switches)
    texts, seconds = networks.size.sampled, dict[str, float]()
    report.measure("texts", texts)
    allocated_bytes(setting.device)
    latents: dict[int, Latents] = {}
    for steps in networks.size.steps:
        generator = _make_generator(networks, switches, steps)
        name = f"denoise, {steps} steps"
        found, seconds[name] = _twice(setting, report, name, lambda: generator.sample_latents(0, 0))  # noqa: B023
        latents[steps] = found[1]
        same = torch.equal(found[0].x0, found[1].x0)
        report.check(f"{name}: the second time equals the first", same, f"finite: {_finite(found[1].x0)}")
    few, many = networks.size.steps
    generator = _make_generator(networks, switches, few)
    for strategy in STRATEGIES:
        name = f"decode, {strategy}"
        written, seconds[name] = _twice(setting, report, name, lambda: generator.decode(latents[few], strategy, 0))  # noqa: B023
        same, empty = written[0] == written[1], written[1].count("")
        report.check(f"{name}: the second time equals the first", same and not empty, f"{empty} empty texts")
    for steps in (few, many):
        for strategy in STRATEGIES:
            rate = texts / _total(seconds, steps, strategy)
            report.measure(f"{steps} steps, {strategy}: texts per second", rate, "/s")
    report.measure("peak memory", peak_bytes(setting.device) / 2**30, "GiB")
    _fast_texts(setting, report, networks, switches)
    _compare_with_eager(networks, report, latents[few].x0)
    _noise(setting, report, networks, many)


def _fast_texts(setting: Setting, report: Report, networks: Networks, switches: Switches) -> None:
    """Time the call of a user who wants many texts by --preset fast, as python -m pipelines.sample makes it."""
    scale = setting.scale
    generator = _make_generator(networks, switches, networks.size.steps[0], batch=scale.fast_batch)
    texts, seconds = list[str](), 0.0
    for count in (scale.fast_batch, scale.fast_texts):  # the first call compiles for its batches
        synchronize(setting.device)
        began = time.perf_counter()
        texts = generator.sample(count, 0, STRATEGIES[:1], quiet=True).texts[STRATEGIES[0]]
        synchronize(setting.device)
        seconds = time.perf_counter() - began
    report.measure(f"{scale.fast_texts:,} texts by the fast preset", seconds, "s")
    empty = texts.count("")
    holds = len(texts) == scale.fast_texts and not empty
    report.check("the fast preset gives the texts", holds, f"{len(texts)}, of which {empty} are empty")


def _make_generator(networks: Networks, switches: Switches, steps: int, batch: int | None = None) -> TextGenerator:
    generator = make_generator(networks, switches, steps, batch=batch)
    fill_zero_weights(generator.denoiser)
    return generator


def _total(seconds: dict[str, float], steps: int, strategy: str) -> float:
    return seconds[f"denoise, {steps} steps"] + seconds[f"decode, {strategy}"]


def _twice(setting: Setting, report: Report, name: str, fn: Callable[[], Any]) -> tuple[list[Any], float]:
    """The results of two calls, and the seconds of the second."""
    found, taken = [], 0.0
    for title in ("first", "second"):
        synchronize(setting.device)
        began = time.perf_counter()
        found.append(fn())
        synchronize(setting.device)
        taken = time.perf_counter() - began
        report.measure(f"{name}, {title} time", taken, "s")
    return found, taken


def _finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


def _compare_with_eager(networks: Networks, report: Report, compiled: Tensor) -> None:
    """Latents of the defaults, compiled on a GPU, against eager ones in bf16 and in float32."""

    def eager(bf16: bool) -> Tensor:
        switches = replace(networks.available(Switches()), compile=False, bf16=bf16)
        return _make_generator(networks, switches, networks.size.steps[0]).sample_latents(0, 0).x0

    half, full = eager(True), eager(False)
    ours, rounding = (float((x - full).norm() / full.norm()) for x in (compiled, half))
    holds = _finite(compiled) and ours <= COMPILED_ERROR * rounding + 1e-4
    detail = f"differ from float32 by {ours:.2g} of their norm, eager ones by {rounding:.2g}"
    report.check("latents compiled as eager", holds, f"{detail}; at most {COMPILED_ERROR} times as much")


def _noise(setting: Setting, report: Report, networks: Networks, steps: int) -> None:
    """Whether drawing noise costs time, and what a draw of wide latents takes on the CPU and on the device."""
    switches = setting.switches(networks)
    generator = _make_generator(networks, switches, steps)
    taken = {}
    for name in ("drawn", "zero"):
        call = generator.prepare(0, 0)
        if name == "zero":
            zeros = torch.zeros_like(call.z)
            call.noise = lambda step, like: zeros  # noqa: B023
        synchronize(setting.device)
        began = time.perf_counter()
        call.run()
        synchronize(setting.device)
        taken[name] = 1000 * (time.perf_counter() - began) / steps
        report.measure(f"a sampling step, noise {name}", taken[name], "ms")
    if setting.on_gpu:  # on a CPU drawing and computing share the processor
        detail = f"{taken['drawn'] / taken['zero']:.3f} times a step without, at most {NOISE_COSTS}"
        report.check("drawing noise hides behind the network", taken["drawn"] <= NOISE_COSTS * taken["zero"], detail)
    for device in dict.fromkeys(("cpu", setting.device.type)):
        for shape in (tuple(generator.prepare(0, 0).z.shape), WIDE if setting.on_gpu else (8, *WIDE[1:])):
            report.measure(f"noise {' x '.join(map(str, shape))} drawn on {device}", _draw(shape, device), "ms")


def _draw(shape: tuple[int, ...], device: str, times: int = 3) -> float:
    """Milliseconds of a draw, the least of several."""
    generator, least = torch.Generator(device), float("inf")
    for _ in range(times + 1):
        began = time.perf_counter()
        torch.randn(shape, generator=generator, device=device)
        synchronize(torch.device(device))
        least = min(least, 1000 * (time.perf_counter() - began))
    return least

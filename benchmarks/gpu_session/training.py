"""What several phases share: a few steps of a denoiser whose output depends on all of its weights, and a timed run."""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.gpu_session.no_waiting import no_waiting
from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.throughput_machine import allocated_bytes, peak_bytes, synchronize, timed
from benchmarks.throughput_networks import Networks, fill_zero_weights
from benchmarks.throughput_sizes import NUM_LOSSES, Case, Switches
from diffusion.options import ProcessOptions, SamplingOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.builders.models import DiffusionModel
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.cached_latents import ConditionalLatents, encode_or_load
from pipelines.steps.diffusion import DiffusionStep
from utils.compile import compile_network
from utils.distributed import autocast
from utils.hooks import StepResult
from utils.loop import train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions, OptimizerOptions
from utils.state import State


@dataclass
class Trained:
    """A few steps of training."""

    losses: list[float]
    weights: Tensor  # all of them, as one vector
    seconds: float


def train_denoiser(
    networks: Networks, steps: int, *, compiled: bool, bf16: bool = False, micro_batches: int = 1
) -> Trained:
    """Train the denoiser of `networks` without dropout on batches of its size, in so many micro-batches."""
    size, device = networks.size, networks.device
    torch.manual_seed(1)
    options = replace(networks.denoiser, disable_dropout=True)  # compiled networks draw other dropout masks
    model = DiffusionModel(networks.space, options, size.tokens, 0).to(device)
    fill_zero_weights(model.denoiser)
    if compiled:
        compile_network(model.denoiser, "on", device)
    where = replace(networks.dist, rank=1)  # no progress bar
    texts = encode_or_load(networks.space, networks.data, networks.folder, "train", "latents", where, "auto")
    source = ConditionalLatents(model.normalize(networks.space), texts)
    process = make_process(ProcessOptions(objective="pred_v"), SamplingOptions(), "latent")
    rows = size.batch // micro_batches
    step = DiffusionStep(model.denoiser, source, process, TrainingSampler(0, rows, micro_batches), 10**6, True)
    optimization = OptimizerOptions(lr_warmup_steps=1)
    optimizer = make_optimizer(model, optimization)
    state = State(model, optimizer, make_lr_schedule(optimizer, optimization, 10**6), None, dist=networks.dist)
    losses: list[float] = []

    def record(state: State, report: StepResult) -> None:
        losses.append(float(report.loss))

    loop = LoopOptions(
        num_train_steps=steps, log_every=10**9, train_batch_size=rows, gradient_accumulation_steps=micro_batches
    )
    networks.set_kernels(replace(networks.available(Switches()), bf16=bf16))
    began = time.perf_counter()
    precision = autocast(device, "bf16" if bf16 else "no")
    train(state, step, [record], loop, clip_grad_norm=1.0, autocast=precision, global_batch=size.batch)
    synchronize(device)
    seconds = time.perf_counter() - began
    return Trained(losses, torch.cat([p.detach().float().flatten() for p in model.parameters()]), seconds)


def largest_difference(expected: list[float], found: list[float]) -> float:
    """Of losses, relative; inf where one is not finite."""
    if not all(map(math.isfinite, (*expected, *found))):
        return math.inf
    return max(abs(b - a) / abs(a) for a, b in zip(expected, found, strict=True))


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

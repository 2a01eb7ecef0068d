"""Micro-batches against the large batch: equal losses and weights after the same steps.

In float32 without dropout. The micro-batches run compiled, the large batch eager: with CUDA graphs, gradients of a
micro-batch lie in memory that the next one reuses.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.throughput_networks import Networks
from benchmarks.throughput_sizes import Switches
from diffusion.options import ProcessOptions, SamplingOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.builders.models import DiffusionModel
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.cached_latents import ConditionalLatents, encode_or_load
from pipelines.steps.diffusion import DiffusionStep
from utils.compile import compile_network
from utils.hooks import StepResult
from utils.loop import train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions, OptimizerOptions
from utils.state import State

MICRO_BATCHES = 4
STEPS = 6
LOSS_TOLERANCE = 1e-3
WEIGHT_TOLERANCE = 1e-3  # norm of the difference, of the norm of the weights


def run(setting: Setting, report: Report) -> None:
    networks = setting.networks(replace(setting.scale.accumulated, dropout=False))
    networks.set_kernels(replace(networks.available(Switches()), bf16=False))
    large, expected = _train(networks, 1, compiled=False)
    split, weights = _train(networks, MICRO_BATCHES, compiled=setting.on_gpu)
    largest = max(abs(b - a) / abs(a) for a, b in zip(large, split, strict=True))
    batch = networks.size.batch
    report.measure("batch", f"{MICRO_BATCHES} x {batch // MICRO_BATCHES} against {batch}")
    report.check(
        f"{STEPS} losses equal", largest <= LOSS_TOLERANCE, f"differ by {largest:.2g}, at most {LOSS_TOLERANCE}"
    )
    apart = float((weights - expected).norm() / expected.norm())
    report.check("weights equal", apart <= WEIGHT_TOLERANCE, f"differ by {apart:.2g}, at most {WEIGHT_TOLERANCE}")


def _train(networks: Networks, micro_batches: int, *, compiled: bool) -> tuple[list[float], torch.Tensor]:
    """The losses of a few steps, and all weights after them as one vector."""
    size, device = networks.size, networks.device
    torch.manual_seed(1)
    model = DiffusionModel(networks.space, networks.denoiser, size.tokens, 0).to(device)
    if compiled:
        compile_network(model.denoiser, "on", device)
    texts = encode_or_load(
        networks.space, networks.data, networks.folder, "train", "latents", replace(networks.dist, rank=1), "auto"
    )
    source = ConditionalLatents(model.normalize(networks.space), texts)
    process = make_process(ProcessOptions(objective="pred_v"), SamplingOptions(), "latent")
    batch_sampler = TrainingSampler(0, size.batch // micro_batches, micro_batches)
    step = DiffusionStep(model.denoiser, source, process, batch_sampler, 10**6, True)
    options = OptimizerOptions(lr_warmup_steps=10)
    optimizer = make_optimizer(model, options)
    state = State(model, optimizer, make_lr_schedule(optimizer, options, 10**6), None, dist=networks.dist)
    losses: list[float] = []

    def record(state: State, result: StepResult) -> None:
        losses.append(float(result.loss))

    loop = LoopOptions(
        num_train_steps=STEPS, log_every=10**9, train_batch_size=size.batch // micro_batches,
        gradient_accumulation_steps=micro_batches,
    )  # fmt: skip
    train(state, step, [record], loop, clip_grad_norm=1.0, global_batch=size.batch)
    return losses, torch.cat([p.detach().float().flatten() for p in model.parameters()])

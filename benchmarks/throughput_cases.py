"""The cases of benchmarks/throughput.py: the real training loops, and by throughput_sampling the real samplers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.throughput_networks import Networks, fill_zero_weights
from benchmarks.throughput_sampling import guidance_cases, sampling_cases
from benchmarks.throughput_sizes import NUM_LOSSES, Case, Maker, Switches, variants
from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from pipelines.builders.diffusion_process import make_process
from pipelines.builders.models import DiffusionModel
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.cached_latents import ConditionalLatents, EncodedSplit, encode_or_load
from pipelines.steps.autoencoder import AutoencoderStep
from pipelines.steps.diffusion import DiffusionStep
from utils.compile import compile_network, needs_one_shape
from utils.distributed import autocast
from utils.ema import EMA
from utils.hooks import StepResult
from utils.loop import train
from utils.optim import make_lr_schedule, make_optimizer
from utils.options import LoopOptions, OptimizerOptions
from utils.state import State


def cases(networks: Networks, parts: list[str]) -> list[Maker]:
    """The cases of some parts, in the order of the table."""
    found: list[Maker] = []
    for part, make in (("denoiser", denoiser_training), ("autoencoder", autoencoder_training)):
        if part in parts:
            for name, switches in variants(part, networks.available).items():
                found.append(Maker(part, name, partial(make, networks, name, switches), switches.freed_memory))
    if "sampling" in parts:
        found += sampling_cases(networks)
    if "guidance" in parts:
        found += guidance_cases(networks)
    return found


def denoiser_training(networks: Networks, name: str, switches: Switches) -> Case:
    size, dist = networks.size, networks.dist
    torch.manual_seed(1)
    model = DiffusionModel(networks.space, networks.denoiser, size.tokens, 0).to(networks.device)
    fill_zero_weights(model.denoiser)  # else the first losses would not depend on the network
    if switches.compile:
        compile_network(model.denoiser, "on", networks.device)
    where = networks.folder if switches.cache else None
    networks.set_kernels(networks.available(Switches()))  # of the cache, whatever case was before
    texts = encode_or_load(networks.space, networks.data, where, "train", "latents", replace(dist, rank=1), "auto")
    source = ConditionalLatents(model.normalize(networks.space), texts)
    process = make_process(ProcessOptions(objective="pred_v"), SamplingOptions(), "latent")
    step = DiffusionStep(model.denoiser, source, process, TrainingSampler(0, size.batch), 10**6, True)
    case = Case("denoiser", name, lambda k: None, size.batch, size.batch * networks.mean_tokens, switches)
    return _training(networks, case, model, step, size.batch, True)


def autoencoder_training(networks: Networks, name: str, switches: Switches) -> Case:
    size, dist = networks.size, networks.dist
    torch.manual_seed(1)
    space = CompressedSpace(networks.model, networks.new_autoencoder())
    if switches.compile:
        for network in (space.autoencoder.encoder, space.autoencoder.decoder):
            compile_network(network, "on", networks.device, part=True)
    states: EncodedSplit | None = None
    if switches.cache:
        networks.set_kernels(networks.available(Switches()))  # of the cache, whatever case was before
        inner = EncoderStatesSpace(networks.model, size.tokens)
        states = encode_or_load(
            inner, networks.data, networks.folder, "train", "states", replace(dist, rank=1), "auto", "float16"
        )
    pad_to = size.tokens if switches.compile and needs_one_shape("on", networks.device) else None
    batch_sampler = TrainingSampler(0, size.ae_batch)
    step = AutoencoderStep(space, networks.data, batch_sampler, networks.device, pad_to=pad_to, states=states)
    case = Case("autoencoder", name, lambda k: None, size.ae_batch, size.ae_batch * networks.mean_tokens, switches)
    return _training(networks, case, space, step, size.ae_batch, False)


def _training(networks: Networks, case: Case, modules: nn.Module, step: Any, batch: int, ema: bool) -> Case:
    """Complete a case of training: optimizer, loop and record of the first losses."""
    switches = case.switches
    options = OptimizerOptions(optimizer=switches.optimizer, no_fused_optimizer=not switches.fused, lr_warmup_steps=10)
    optimizer = make_optimizer(modules, options)
    schedule = make_lr_schedule(optimizer, options, 10**6)
    averages = EMA(modules, foreach=switches.fused) if ema else None
    state = State(modules, optimizer, schedule, averages, dist=networks.dist)
    case.parameters = sum(p.numel() for p in state.parameters())
    precision = autocast(networks.device, "bf16" if switches.bf16 else "no")

    def record_loss(state: State, report: StepResult) -> None:
        if len(case.losses) < NUM_LOSSES:
            case.losses.append(float(report.loss))

    def run(k: int) -> None:
        networks.set_kernels(switches)
        loop = LoopOptions(num_train_steps=state.step + k, log_every=10**9, train_batch_size=batch)
        train(state, step, [record_loss], loop, clip_grad_norm=1.0, autocast=precision, global_batch=batch)

    case.run = run
    return case

"""The cases of benchmarks/throughput.py that sample and decode.

Speculative decoding is none of the switches: it applies to an autoencoder with a trained draft model, which random
weights cannot replace. benchmarks/speculative_decoding.py measures it for any run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.throughput_networks import Networks
from benchmarks.throughput_sizes import Case, Maker, Switches, variants
from diffusion.options import ProcessOptions, SamplingOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.cli.presets import PRESETS
from pipelines.sampling.generator import TextGenerator
from utils.distributed import autocast
from utils.records import Condition

FAST = {name: PRESETS["fast"][name] for name in ("sampler", "time_grid")}


def sampling_cases(networks: Networks) -> list[Maker]:
    """Denoising in few and in many steps, decoding by each strategy, and both one after the other."""
    few, many = networks.size.steps
    found = []

    def add(kind: str, title: str, make: partial[Case]) -> None:
        for name, switches in variants(kind, partial(networks.available, sampling=True)).items():
            full = f"{title}, {name}"
            found.append(Maker("sampling", full, partial(make, full, switches), switches.freed_memory))

    add("denoise", f"denoise, {few} steps", partial(denoising, networks, few))
    add("denoise", f"denoise, {many} steps", partial(denoising, networks, many))
    for strategy in ("greedy", "beam", "nucleus"):
        add("decode", f"decode, {strategy}", partial(decoding, networks, strategy))
    add("end to end", f"end to end, {few} steps, greedy", partial(end_to_end, networks, few))
    return found


def make_generator(
    networks: Networks,
    switches: Switches,
    steps: int,
    classes: int = 0,
    guidance: float = 1.0,
    batch: int | None = None,
) -> TextGenerator:
    """A generator that samples as --preset fast does where the number of steps is the smaller one, else by DDPM.

    batch: texts that are computed together; None: those of the size.
    """
    model = networks.sampling_network(switches.compile, classes)
    sampler = FAST if steps == networks.size.steps[0] else {}
    process = make_process(
        ProcessOptions(objective="pred_v"), SamplingOptions(sampling_timesteps=steps, **sampler), "latent"
    )
    precision, space = autocast(networks.device, "bf16" if switches.bf16 else "no"), networks.sampling_space
    return TextGenerator(
        model.normalize(space), model.denoiser, process, steps=steps, batch_size=batch or networks.size.sampled,
        device=networks.device, autocast=precision, max_length=networks.size.tokens, guidance=guidance,
    )  # fmt: skip


def denoising(networks: Networks, steps: int, name: str, switches: Switches) -> Case:
    generator = make_generator(networks, switches, steps)

    def run(k: int) -> None:
        networks.set_kernels(switches)
        for b in range(k):
            generator.sample_latents(0, b)

    read = _weights(generator.denoiser, switches.bf16) * steps
    return Case("sampling", name, run, networks.size.sampled, switches=switches, bytes_read=read)


def decoding(networks: Networks, strategy: str, name: str, switches: Switches) -> Case:
    generator = make_generator(networks, replace(switches, compile=False), networks.size.steps[0])
    networks.set_kernels(switches)
    clean = generator.sample_latents(0, 0)

    def run(k: int) -> None:
        networks.set_kernels(switches)
        for b in range(k):
            generator.decode(clean, strategy, b)

    read = _decoder_weights(networks, switches)
    switches = replace(switches, compile=False)  # the decoder of the language model is not compiled
    return Case("sampling", name, run, networks.size.sampled, switches=switches, bytes_read=read)


def end_to_end(networks: Networks, steps: int, name: str, switches: Switches) -> Case:
    generator = make_generator(networks, switches, steps)

    def run(k: int) -> None:
        networks.set_kernels(switches)
        generator.sample(k * networks.size.sampled, 0, ("greedy",), quiet=True)

    read = _weights(generator.denoiser, switches.bf16) * steps
    read += _decoder_weights(networks, switches)
    return Case("sampling", name, run, networks.size.sampled, switches=switches, bytes_read=read)


def _decoder_weights(networks: Networks, switches: Switches) -> float:
    """Bytes of the weights that decoding a text of full length reads, once for each token."""
    decoder = networks.decoding_model.model.get_decoder()
    return _weights(decoder, switches.bf16 and switches.bf16_copy) * networks.size.tokens


def _weights(network: nn.Module, bf16: bool) -> float:
    """Bytes of the weights of a network."""
    return (2.0 if bf16 else 4.0) * sum(p.numel() for p in network.parameters())


def guidance_cases(networks: Networks) -> list[Maker]:
    return [
        Maker("guidance", f"{name}, batch {batch}", partial(guided, networks, name, batch))
        for batch in dict.fromkeys((1, networks.size.guided))
        for name in ("guided", "two calls", "unguided")
    ]


def guided(networks: Networks, name: str, batch: int) -> Case:
    """Network calls of one sampling step: guided, unguided, or two separate calls (conditional, unconditional)."""
    size, device = networks.size, networks.device
    switches = networks.available(Switches(), sampling=True)
    condition = Condition.of(class_id=torch.arange(batch) % 4).to(device)
    z = torch.randn(batch, size.latents, size.dim, device=device)
    t = torch.full((1,), 0.5, device=device)  # as samplers pass it
    one, with_guidance = (make_generator(networks, switches, 1, 4, guidance=weight) for weight in (1.0, 2.0))
    denoisers = {
        "guided": [with_guidance.make_denoise_fn(condition, None)],
        "two calls": [one.make_denoise_fn(condition, None), one.make_denoise_fn(condition.null(), None)],
        "unguided": [one.make_denoise_fn(condition, None)],
    }[name]

    def run(k: int) -> None:
        networks.set_kernels(switches)
        with torch.no_grad():
            for _ in range(k):
                for denoise in denoisers:
                    denoise(z, t, z)

    return Case("guidance", f"{name}, batch {batch}", run, batch, switches=switches)

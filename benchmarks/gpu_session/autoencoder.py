"""The autoencoder of the paper on cached states of the language model: its rate, and the share of a validation."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.gpu_session.training import timed_run
from benchmarks.throughput_cases import autoencoder_training
from benchmarks.throughput_machine import synchronize
from benchmarks.throughput_networks import Networks
from benchmarks.throughput_sizes import Switches
from pipelines.evaluators.reconstruction import reconstruct, via_latents
from utils.distributed import autocast

PUBLISHED_STEPS = 50_000
EVAL_EVERY = 5_000  # steps between two validations, of scripts/autoencoder


def run(setting: Setting, report: Report) -> None:
    networks = setting.networks()
    switches = setting.switches(networks)
    case = autoencoder_training(networks, "recipe", switches)
    rate = timed_run(setting, report, case, setting.scale.autoencoder_steps, setting.scale.size.ae_batch)
    if setting.scale.name == "paper":
        report.measure(f"time of {PUBLISHED_STEPS:,} steps", PUBLISHED_STEPS / rate / 60, "min")
    seconds = validation(setting, networks, switches)
    report.measure(f"a validation of {setting.scale.validated:,} texts by beam search", seconds, "s")
    report.measure(f"a validation, of the time of {EVAL_EVERY:,} steps", 100 * seconds * rate / EVAL_EVERY, "%")


def validation(setting: Setting, networks: Networks, switches: Switches) -> float:
    """Seconds in which held-out texts are encoded to latents and decoded again; their scores take no GPU.

    It decodes by a language model with random weights whose texts end at a usual length.
    """
    networks.set_kernels(switches)
    rows = torch.arange(setting.scale.validated) % len(networks.data)
    decode = via_latents(networks.sampling_space, networks.size.tokens)
    precision = autocast(setting.device, "bf16" if switches.bf16 else "no")
    synchronize(setting.device)
    began = time.perf_counter()
    reconstruct(
        decode, networks.data, rows, setting.scale.eval_batch, "beam", setting.device, precision, "validate", quiet=True
    )  # fmt: skip
    synchronize(setting.device)
    return time.perf_counter() - began

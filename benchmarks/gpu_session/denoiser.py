"""The denoiser of the paper on cached latents: compiled losses against eager ones, then the recipe at full speed."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.gpu_session.training import compare_losses, timed_run
from benchmarks.throughput_cases import denoiser_training

PUBLISHED_STEPS = 250_000


def run(setting: Setting, report: Report) -> None:
    networks, size = setting.networks(), setting.scale.size
    if setting.on_gpu:
        recipe = networks.denoiser
        networks.denoiser = replace(recipe, disable_dropout=True)  # compiled networks draw other dropout masks
        compare_losses(setting, report, networks, denoiser_training)
        networks.denoiser = recipe
    else:
        report.note("not compiled on a CPU, which takes the compiler most of a minute")
    case = denoiser_training(networks, "recipe", setting.switches(networks))
    rate = timed_run(setting, report, case, setting.scale.denoiser_steps, size.batch)
    if setting.scale.name == "paper":
        report.measure(f"time of {PUBLISHED_STEPS:,} steps", PUBLISHED_STEPS / rate / 60, "min")

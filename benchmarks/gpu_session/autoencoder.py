"""The autoencoder of the paper on cached states of the language model."""

from __future__ import annotations

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.gpu_session.training import timed_run
from benchmarks.throughput_cases import autoencoder_training

PUBLISHED_STEPS = 50_000


def run(setting: Setting, report: Report) -> None:
    networks = setting.networks()
    case = autoencoder_training(networks, "recipe", setting.switches(networks))
    rate = timed_run(setting, report, case, setting.scale.autoencoder_steps, setting.scale.size.ae_batch)
    if setting.scale.name == "paper":
        report.measure(f"time of {PUBLISHED_STEPS:,} steps", PUBLISHED_STEPS / rate / 60, "min")

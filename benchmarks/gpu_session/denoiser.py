"""The denoiser of the paper on cached latents: compiled losses against eager ones, then the recipe at full speed."""

from __future__ import annotations

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.gpu_session.training import free, largest_difference, timed_run, train_denoiser
from benchmarks.throughput_cases import denoiser_training
from benchmarks.throughput_networks import Networks

PUBLISHED_STEPS = 250_000
TOLERANCE = {True: 5e-3, False: 1e-3}  # of a loss, which is a mean over a batch, by bf16


def run(setting: Setting, report: Report) -> None:
    networks, size = setting.networks(), setting.scale.size
    compare_losses(setting, report, networks, compiled=setting.on_gpu)
    free(setting)
    case = denoiser_training(networks, "recipe", setting.switches(networks))
    rate = timed_run(setting, report, case, setting.scale.denoiser_steps, size.batch)
    if setting.scale.name == "paper":
        report.measure(f"time of {PUBLISHED_STEPS:,} steps", PUBLISHED_STEPS / rate / 60, "min")


def compare_losses(setting: Setting, report: Report, networks: Networks, *, compiled: bool) -> None:
    """The first losses of a compiled network against those of an eager one."""
    steps, tolerance = setting.scale.compared_steps, TOLERANCE[networks.bf16]
    if not compiled:
        report.note("not compiled on a CPU, which takes the compiler most of a minute: two eager runs are compared")
    runs = {}
    for name, compiles in (("eager", False), ("compiled" if compiled else "again", compiled)):
        runs[name] = train_denoiser(networks, steps, compiled=compiles, bf16=networks.bf16)
        report.measure(f"first {steps} steps, {name}", runs[name].seconds, "s")
        free(setting)
    expected, found = (run.losses for run in runs.values())
    largest = largest_difference(expected, found)
    shown = " ".join(f"{loss:.5g}" for loss in found)
    detail = f"{shown}; largest relative difference {largest:.2g}, at most {tolerance}"
    report.check(f"{steps} losses {' as '.join(reversed(runs))}", largest <= tolerance, detail)

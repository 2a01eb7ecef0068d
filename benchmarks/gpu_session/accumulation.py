"""Micro-batches against the large batch: equal losses and weights after the same steps.

In float32 without dropout. The micro-batches run compiled, the large batch eager: with CUDA graphs, gradients of a
micro-batch lie in memory that the next one reuses.
"""

from __future__ import annotations

from benchmarks.gpu_session.report import Report
from benchmarks.gpu_session.scales import Setting
from benchmarks.gpu_session.training import largest_difference, train_denoiser

MICRO_BATCHES = 4
STEPS = 6
LOSS_TOLERANCE = 1e-3
WEIGHT_TOLERANCE = 1e-3  # norm of the difference, of the norm of the weights


def run(setting: Setting, report: Report) -> None:
    networks = setting.networks(setting.scale.accumulated)
    large = train_denoiser(networks, STEPS, compiled=False)
    split = train_denoiser(networks, STEPS, compiled=setting.on_gpu, micro_batches=MICRO_BATCHES)
    batch = networks.size.batch
    report.measure("batch", f"{MICRO_BATCHES} x {batch // MICRO_BATCHES} against {batch}")
    largest = largest_difference(large.losses, split.losses)
    detail = f"{split.losses[0]:.4g} to {split.losses[-1]:.4g}; differ by {largest:.2g}, at most {LOSS_TOLERANCE}"
    report.check(f"{STEPS} losses equal", largest <= LOSS_TOLERANCE, detail)
    apart = float((split.weights - large.weights).norm() / large.weights.norm())
    report.check("weights equal", apart <= WEIGHT_TOLERANCE, f"differ by {apart:.2g}, at most {WEIGHT_TOLERANCE}")

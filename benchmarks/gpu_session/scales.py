"""Sizes of the session: the paper's on a GPU; tiny ones without, which show that every phase works and measure nothing.

A Setting is what a phase receives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.throughput_sizes import SIZES, Size, Switches

if TYPE_CHECKING:
    import torch

    from benchmarks.throughput_networks import Networks


@dataclass(frozen=True)
class Scale:
    """Sizes and numbers of steps of all phases."""

    name: str
    size: Size
    accumulated: Size  # of the phase accumulation
    denoiser_steps: int
    autoencoder_steps: int
    compared_steps: int  # whose losses are compared with those of uncompiled networks
    attention_batch: int
    stories: int  # of the corpus of the programs
    lm: str  # flags of the programs
    autoencoder: str
    denoiser: str
    log_every: int
    evaluated: int  # samples of --eval
    validated: int  # texts of a validation of the autoencoder
    eval_batch: int  # texts that a validation decodes together
    fast_texts: int  # of the timed --preset fast
    fast_batch: int
    cases: tuple[str, ...] | None  # of the phase waiting; None: all


TINY = Size(
    vocabulary=114, width=64, layers=1, heads=2, tokens=24, latents=4, dim=64, ae_layers=1, tx_dim=64, tx_depth=2,
    skips=0, dropout=False, batch=16, ae_batch=16, texts=256, sampled=16, steps=(3, 6), guided=16,
)  # fmt: skip

SCALES = {
    "paper": Scale(
        "paper", replace(SIZES["paper"], texts=2048, sampled=128), replace(SIZES["small"], texts=1024),
        denoiser_steps=300, autoencoder_steps=100, compared_steps=5, attention_batch=16, stories=4000,
        lm="--d_model 128 --layers 2 --heads 4 --num_train_steps 200 --train_batch_size 64",
        autoencoder="--num_encoder_latents 8 --dim_ae 64 --num_layers 2 --num_train_steps 200 --train_batch_size 64",
        denoiser="--tx_dim 192 --tx_depth 4 --num_train_steps 1500 --train_batch_size 64",
        log_every=50, evaluated=250, validated=1000, eval_batch=250, fast_texts=1000, fast_batch=250, cases=None,
    ),
    "tiny": Scale(
        "tiny", TINY, TINY,
        denoiser_steps=20, autoencoder_steps=10, compared_steps=5, attention_batch=2, stories=300,
        lm="--d_model 64 --layers 1 --heads 2 --num_train_steps 20 --train_batch_size 16",
        autoencoder="--num_encoder_latents 4 --dim_ae 64 --num_layers 1 --num_train_steps 20 --train_batch_size 16",
        denoiser="--tx_dim 64 --tx_depth 2 --num_train_steps 150 --train_batch_size 8",
        log_every=10, evaluated=16, validated=24, eval_batch=12, fast_texts=24, fast_batch=12, cases=("plain", "bf16"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Where and how large a phase runs."""

    scale: Scale
    device: torch.device
    folder: Path  # of the results
    work: Path  # of everything large; phases may leave files here for later ones
    seconds: float  # until the phase is ended

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def networks(self, size: Size | None = None) -> Networks:
        """Networks of the paper's architecture with random weights."""
        from benchmarks.throughput_networks import Networks

        (self.work / "caches").mkdir(exist_ok=True)
        flag = "auto" if self.on_gpu else "off"  # minutes on a CPU
        return Networks(size or self.scale.size, self.device, self.work / "caches", compile_flag=flag)

    def switches(self, networks: Networks, *, compiled: bool = True) -> Switches:
        """The defaults of the programs on this device, or those without compilation."""
        return networks.available(replace(Switches(), compile=compiled))

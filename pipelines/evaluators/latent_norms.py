"""Norms of latent vectors, of texts and of samples: samples of a good denoiser have those of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from pipelines.sampling.sampler_call import SamplerCall
from utils.records import Latents
from utils.run_folder import write_json
from utils.trackers import Histogram

FILE = "latent_norms.json"  # in a run folder, and in its folder of evaluations
UNIT = "norm of a latent vector"
NUM_TEXTS = 512  # whose latents are measured


def norms(latents: Latents) -> Tensor:
    """(N,) the norms of the latent vectors at the positions of texts, on the CPU."""
    return latents.x0.float().norm(dim=-1)[latents.mask].cpu()


class SampleNorms:
    """A hook that keeps the norms of sampled latents, those of this process."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def __call__(self, call: SamplerCall) -> None:
        last = len(call.timesteps) - 2

        def record(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
            if step == last:
                self._parts.append(norms(Latents(z, call.decode_mask)))
            return z

        call.step_hooks.append(record)

    def take(self) -> Histogram | None:
        """The histogram of what was sampled since the last call; None: nothing was."""
        parts, self._parts = self._parts, []
        return Histogram.of(torch.cat(parts)) if parts else None


def write_norms(folder: Path, found: Mapping[str, Histogram], earlier: Path | None = None) -> None:
    """Write latent_norms.json: histograms by name, those of `earlier` (a folder with such a file) included."""
    kept: dict[str, object] = {}
    with suppress(OSError, ValueError, AttributeError):
        kept = dict(json.loads(((earlier or folder) / FILE).read_text(encoding="utf-8")).get("histograms", {}))
    new = {name: {"edges": list(h.edges), "counts": list(h.counts)} for name, h in found.items()}
    write_json(folder / FILE, {"unit": UNIT, "histograms": {**kept, **new}})

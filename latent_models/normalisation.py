"""Centring and scaling of latents by statistics of the training set, wrapped around any space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latent_models.spaces import LatentSpace
from utils.records import Batch, Latents


class Normalised(LatentSpace):
    """(x0 - mean) / scale, mean per channel (D,), scale one number, both over valid positions."""

    mean: Tensor
    scale: Tensor

    def __init__(self, space: LatentSpace, mean: Tensor | None = None, scale: Tensor | None = None) -> None:
        super().__init__()
        self.space = space
        self.length, self.dim, self.trainable = space.length, space.dim, space.trainable
        self.register_buffer("mean", torch.zeros(space.dim) if mean is None else mean)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)

    def normalise(self, latents: Latents) -> Latents:
        mean, scale = self.mean.to(latents.x0), self.scale.to(latents.x0).clamp(min=1e-5)
        inner = None if latents.mean is None else (latents.mean - mean) / scale
        return replace(latents, x0=(latents.x0 - mean) / scale, mean=inner)

    def restore(self, x0: Tensor) -> Tensor:
        return x0 * self.scale.to(x0).clamp(min=1e-5) + self.mean.to(x0)

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        return self.normalise(self.space.encode(batch, generator))

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self.space.decode(replace(latents, x0=self.restore(latents.x0)), **generate)

    def project(self, x0: Tensor) -> Tensor:
        projected = self.space.project(restored := self.restore(x0))
        if projected is restored:  # nothing to project: spare the round trip and its rounding
            return x0
        return (projected - self.mean.to(x0)) / self.scale.to(x0).clamp(min=1e-5)

    def token_logits(self, x0: Tensor) -> Tensor | None:
        return self.space.token_logits(self.restore(x0))

    def sample_mask(self, n: int, generator: torch.Generator) -> Tensor:
        return self.space.sample_mask(n, generator)

    def fingerprint(self) -> str:
        return self.space.fingerprint()  # the cache holds latents before normalisation


def statistics(latents: Iterable[Latents]) -> tuple[Tensor, Tensor]:
    """(mean (D,), scale ()) over the valid positions of some batches.

    mean: per channel. scale: population standard deviation of the centred values, all channels together.
    Summed in float64, so the number of batches does not blur it.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in latents:
        valid = batch.x0[batch.mask].double()  # (n, D)
        count += len(valid)
        total = total + valid.sum(0).cpu()
        squares = squares + valid.square().sum(0).cpu()
    mean = total / count
    scale = (squares / count - mean.square()).mean().clamp(min=0).sqrt()
    return mean.float(), scale.float()

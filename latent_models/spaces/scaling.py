"""Scaling of latents by statistics of the training latents, saved with the decoder that reads them.

Noise of standard deviation sigma, and the prior of diffusion, are meant for latents of mean 0 and variance 1. Shapes: B
texts, L positions, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from latent_models.spaces.normalization import estimate_mean_std
from utils.errors import UserError
from utils.records import Latents

SCALINGS = {
    "none": "as they are",
    "standard": "center each dimension, and divide by one standard deviation, so that directions keep their ratios",
    "half_whiten": "directions get the square roots of their variances, scaled to a mean of 1: half way to whiten",
    "whiten": "identity covariance: every direction gets variance 1",
}
POWERS = {"half_whiten": 0.25, "whiten": 0.5}  # of the variance of a direction, by which it is divided
FLOOR = 1e-5  # smallest variance of a direction that whitening divides by, relative to the largest


class LatentScaling(nn.Module):
    """x -> (x - center) / scale, or (x - center) W; buffers only, which estimate() fills once.

    W = U diag(v**-p) U' / s of the covariance U diag(v) U': p = 1/2 whitens; with p = 1/4, and s for a mean variance of
    1, the directions keep their order, so that noise hides those of little variance first.
    """

    center: Tensor  # (D,)
    scale: Tensor  # (), the standard deviation; 1 with whitening
    whitening: Tensor | None  # (D, D), symmetric
    coloring: Tensor | None  # (D, D), its inverse
    num_vectors: Tensor  # () int64, latents that it was estimated from; 0 before

    def __init__(self, dim: int, kind: str = "standard") -> None:
        """kind: a key of SCALINGS."""
        super().__init__()
        self.kind = kind
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("whitening", torch.eye(dim) if kind in POWERS else None)
        self.register_buffer("coloring", torch.eye(dim) if kind in POWERS else None)
        self.register_buffer("num_vectors", torch.zeros((), dtype=torch.int64))

    @property
    def is_estimated(self) -> bool:
        """Whether there is nothing left to estimate."""
        return self.kind == "none" or int(self.num_vectors) > 0

    @torch.no_grad()
    def estimate(self, latents: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Set the statistics from batches of latents before scaling, (B, L, D), and their masks (B, L) or None.

        Sums are in float64, so that they do not depend on the size of the batches. Raises UserError where all vectors
        are equal, or some are not finite.
        """
        if self.kind == "none":
            return
        valid = ((x, torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()) for x, mask in latents)
        batches = (Latents(x.cpu(), mask) for x, mask in valid)
        if self.kind == "standard":
            seen = _Counter(batches)
            mean, std = estimate_mean_std(seen)
            count, covariance = seen.count, None
        else:
            count, mean, covariance = _covariance(batches)
            std = torch.ones(())
        spread = std if covariance is None else covariance.diagonal().max()
        if not all(bool(x.isfinite().all()) for x in (mean, spread)):
            raise UserError(
                "the latents hold numbers that are infinite or not a number, so they cannot be scaled: check the "
                "weights of their encoder; of frozen embeddings, --encoder_layer names another layer"
            )
        if not float(spread) > 1e-12:
            raise UserError(f"the latents of all {count} texts are equal, so they cannot be scaled: check the corpus")
        self.center.copy_(mean)
        self.num_vectors.fill_(count)
        if covariance is None:
            self.scale.copy_(std)
            return
        assert self.whitening is not None and self.coloring is not None
        variances, directions = torch.linalg.eigh(covariance)  # (D,), (D, D) float64
        divisors = variances.clamp(min=FLOOR * float(variances.max())) ** POWERS[self.kind]
        if self.kind != "whiten":
            divisors = divisors * (variances.clamp(min=0) / divisors**2).mean().sqrt()
        self.whitening.copy_(directions / divisors @ directions.T)
        self.coloring.copy_(directions * divisors @ directions.T)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scaled latents (B, L, D), float32 whatever the dtype of x; zeros where mask (B, L) is False."""
        with torch.autocast(x.device.type, enabled=False):
            centered = x.float() - self.center.float()
            out = centered / self.scale.float() if self.whitening is None else centered @ self.whitening.float()
        return out if mask is None else out * mask[..., None]

    def inverse(self, x: Tensor) -> Tensor:
        """The latents (B, L, D), float32, whose scaled ones are x."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            out = x * self.scale.float() if self.coloring is None else x @ self.coloring.float()
            return out + self.center.float()


class _Counter:
    """Batches of latents, and how many valid vectors they held."""

    def __init__(self, batches: Iterable[Latents]) -> None:
        self.batches, self.count = batches, 0

    def __iter__(self) -> Iterator[Latents]:
        for batch in self.batches:
            self.count += int(batch.mask.sum())
            yield batch


def _covariance(batches: Iterable[Latents]) -> tuple[int, Tensor, Tensor]:
    """Number of valid vectors, their mean (D,), and their covariance (D, D), in float64."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None  # the first vector: products of far vectors would round away their differences
    for batch in batches:
        valid = batch.x0[batch.mask].double()  # (n, D)
        if not len(valid):
            continue
        shift = valid[0] if shift is None else shift
        valid = valid - shift
        count, total, products = count + len(valid), total + valid.sum(0), products + valid.T @ valid
    assert count and shift is not None, "statistics of no latents"
    mean = total / count
    return count, mean + shift, products / count - mean[:, None] * mean

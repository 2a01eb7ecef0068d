"""Statistics of the training latents, and a wrapper that normalizes any space by them.

The statistics are saved with the denoiser that was trained on them: mean, scale and lengths of texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.spaces.base import LatentSpace
from latent_models.spaces.length_prior import counts_near_source_length, sample_length
from utils.errors import UserError
from utils.records import Batch, Latents


class LatentStatistics(nn.Module):
    """Buffers only: mean per channel (D,), scale (), and number of training texts of each length (L + 1,).

    With sources also the number of pairs of each length of source and text, pair_counts (S + 1, L + 1).
    """

    mean: Tensor
    scale: Tensor
    length_counts: Tensor
    pair_counts: Tensor | None

    def __init__(self, dim: int, length: int, source_length: int = 0) -> None:
        """source_length: tokens of the longest source; 0: lengths of texts do not depend on sources."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("length_counts", torch.zeros(length + 1))
        self.register_buffer("pair_counts", torch.zeros(source_length + 1, length + 1) if source_length else None)


class NormalizedSpace(LatentSpace):
    """Wraps a space with x0 -> (x0 - mean) / scale, and with a prior over the lengths of samples.

    encode returns normalized latents; decode, project and losses take them. Lengths follow those of the training texts,
    or, given sources, those of the texts of training sources of similar length.
    """

    def __init__(self, space: LatentSpace, statistics: LatentStatistics) -> None:
        super().__init__()
        self.space, self.statistics = space, statistics
        self.length, self.dim, self.variable_length = space.length, space.dim, space.variable_length
        self.learned_with_denoiser = space.learned_with_denoiser
        self.always_project, self.has_text_decoder = space.always_project, space.has_text_decoder
        self.decoding_draws = space.decoding_draws

    def normalize(self, latents: Latents) -> Latents:
        """Latents of the wrapped space -> normalized latents."""
        center, scale = self._stats(latents.x0)
        mean = None if latents.mean is None else (latents.mean - center) / scale
        return replace(latents, x0=(latents.x0 - center) / scale, mean=mean)

    def denormalize(self, x0: Tensor) -> Tensor:
        """The inverse of normalize, (B, L, D)."""
        center, scale = self._stats(x0)
        return x0 * scale + center

    def _stats(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.statistics.mean.to(like), self.statistics.scale.to(like).clamp(min=1e-5)

    def encode(self, batch: Batch) -> Latents:
        return self.normalize(self.space.encode(batch))

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self.space.decode(replace(latents, x0=self.denormalize(latents.x0)), **generate)

    def fill(self, latents: Latents, ids: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        return self.space.fill(replace(latents, x0=self.denormalize(latents.x0)), ids, known, lengths)

    def check_fill(self) -> None:
        self.space.check_fill()

    def project(self, x0: Tensor) -> Tensor:
        denormalized = self.denormalize(x0)
        projected = self.space.project(denormalized)
        if projected is denormalized:  # the identity: skip the round trip and its rounding
            return x0
        center, scale = self._stats(x0)
        return (projected - center) / scale

    def losses(self, batch: Batch, latents: Latents, x0_hat: Tensor) -> dict[str, Tensor]:
        mean = None if latents.mean is None else self.denormalize(latents.mean)
        inner = replace(latents, x0=self.denormalize(latents.x0), mean=mean)
        return self.space.losses(batch, inner, self.denormalize(x0_hat))

    def sample_mask(self, n: int, generator: torch.Generator, sources: Tensor | None = None) -> Tensor:
        """Masks (n, L) of the texts to be sampled: all True, or lengths drawn from those of the training texts.

        sources: see sample_lengths.
        """
        if not self.variable_length:
            return torch.ones(n, self.length, dtype=torch.bool)
        return torch.arange(self.length) < self.sample_lengths(n, generator, sources)[:, None]

    def sample_lengths(self, n: int, generator: torch.Generator, sources: Tensor | None = None) -> Tensor:
        """Lengths (n,) in tokens, on the CPU, drawn from those of the training texts.

        sources: (m,) lengths in tokens of m <= n sources; then returns (m,), drawn from the training pairs with sources
        of similar length. A run that holds no counts of pairs draws from all texts.
        Raises UserError if the run holds no counts of lengths.
        """
        if sources is not None and self.has_pair_lengths:
            assert self.statistics.pair_counts is not None
            uniform = torch.rand(n, generator=generator)[: len(sources)]  # n numbers: a length does not depend on m
            return sample_length(counts_near_source_length(self.statistics.pair_counts.cpu(), sources.cpu()), uniform)
        counts = self.statistics.length_counts.float().cpu()
        if not bool(counts.sum() > 0):
            raise UserError(
                "this run holds no length prior, so no lengths can be drawn: train it again with its corpus"
            )
        return torch.multinomial(counts, n, replacement=True, generator=generator)

    @property
    def has_pair_lengths(self) -> bool:
        """Whether lengths of samples depend on those of their sources."""
        counts = self.statistics.pair_counts
        return self.variable_length and counts is not None and bool(counts.any())

    def fingerprint(self) -> str:
        return self.space.fingerprint()  # a cache holds latents before normalization

    def splitting_rules(self) -> str:
        return self.space.splitting_rules()


def estimate_mean_std(latents: Iterable[Latents]) -> tuple[Tensor, Tensor]:
    """(mean (D,), scale ()) over the valid positions of some batches.

    mean: per channel. scale: population standard deviation of the centered values over all channels.
    Sums are in float64 on the CPU, so that rounding does not grow with the number of batches.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in latents:
        valid = batch.x0[batch.mask].cpu().double()  # (n, D)
        count += len(valid)
        total = total + valid.sum(0)
        squares = squares + valid.square().sum(0)
    assert count, "statistics of no latents"
    mean = total / count
    return mean.float(), (squares / count - mean.square()).mean().clamp(min=0).sqrt().float()


def count_lengths(lengths: Tensor, max_seq_len: int) -> Tensor:
    """(n,) lengths of training texts in tokens -> (max_seq_len + 1,) counts; UserError for a text without tokens."""
    counts = torch.bincount(lengths.long().clamp(max=max_seq_len), minlength=max_seq_len + 1)
    if counts[0]:
        raise UserError(f"{int(counts[0])} training texts hold no tokens at all: take empty lines out of the corpus")
    return counts.float()

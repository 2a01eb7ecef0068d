"""Statistics of the training latents, and a wrapper that normalises any space by them.

The statistics are saved with the denoiser that was trained on them: centre and scale, and how long texts are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.pair_lengths import draw, given_sources
from latent_models.spaces import LatentSpace
from utils.errors import UserError
from utils.records import Batch, Latents


class LatentStatistics(nn.Module):
    """Buffers only: mean per channel (D,), scale () and how many training texts have each length (L + 1,).

    With sources also how many pairs have each length of source and text (S + 1, L + 1), pair_counts.
    """

    mean: Tensor
    scale: Tensor
    length_counts: Tensor
    pair_counts: Tensor | None

    def __init__(self, dim: int, length: int, source_length: int = 0) -> None:
        """source_length: of the longest source in tokens; 0: lengths of texts depend on none."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("length_counts", torch.zeros(length + 1))
        self.register_buffer("pair_counts", torch.zeros(source_length + 1, length + 1) if source_length else None)


class Normalised(LatentSpace):
    """(x0 - mean) / scale around a space; lengths of samples follow those of the training texts, or, told a source,
    of the texts of such sources.

    What comes out of encode, and what decode, project, token_logits and auxiliary_losses take, is in these coordinates.
    """

    def __init__(self, space: LatentSpace, statistics: LatentStatistics) -> None:
        super().__init__()
        self.space, self.statistics = space, statistics
        self.length, self.dim, self.masked, self.trainable = space.length, space.dim, space.masked, space.trainable

    def normalise(self, latents: Latents) -> Latents:
        """Latents of the space inside -> the same, centred and scaled."""
        centre, scale = self._numbers(latents.x0)
        inner = None if latents.mean is None else (latents.mean - centre) / scale
        return replace(latents, x0=(latents.x0 - centre) / scale, mean=inner)

    def restore(self, x0: Tensor) -> Tensor:
        """The inverse of normalise, (B, L, D)."""
        centre, scale = self._numbers(x0)
        return x0 * scale + centre

    def _numbers(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.statistics.mean.to(like), self.statistics.scale.to(like).clamp(min=1e-5)

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        return self.normalise(self.space.encode(batch, generator))

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self.space.decode(replace(latents, x0=self.restore(latents.x0)), **generate)

    def passes(self) -> tuple[int, int]:
        return self.space.passes()

    def project(self, x0: Tensor) -> Tensor:
        restored = self.restore(x0)
        projected = self.space.project(restored)
        if projected is restored:  # nothing to project: spare the round trip and its rounding
            return x0
        centre, scale = self._numbers(x0)
        return (projected - centre) / scale

    def token_logits(self, x0: Tensor) -> Tensor | None:
        return self.space.token_logits(self.restore(x0))

    def auxiliary_losses(self, batch: Batch, latents: Latents, x0_hat: Tensor) -> dict[str, Tensor]:
        mean = None if latents.mean is None else self.restore(latents.mean)
        inner = replace(latents, x0=self.restore(latents.x0), mean=mean)
        return self.space.auxiliary_losses(batch, inner, self.restore(x0_hat))

    def sample_mask(self, n: int, generator: torch.Generator, sources: Tensor | None = None) -> Tensor:
        """See LatentSpace. sources: as of sample_lengths."""
        if not self.masked:
            return super().sample_mask(n, generator)
        return torch.arange(self.length) < self.sample_lengths(n, generator, sources)[:, None]

    def sample_lengths(self, n: int, generator: torch.Generator, sources: Tensor | None = None) -> Tensor:
        """(n,) lengths in tokens on the CPU, drawn from those of the training texts.

        sources: (m,) tokens of m <= n sources; then (m,), from the training pairs with sources about as long. A run
        that was trained before these were counted draws from all texts.
        """
        if sources is not None and self.knows_pairs:
            assert self.statistics.pair_counts is not None
            uniform = torch.rand(n, generator=generator)[: len(sources)]  # fewer sources change no other's
            return draw(given_sources(self.statistics.pair_counts.cpu(), sources.cpu()), uniform)
        counts = self.statistics.length_counts.float().cpu()
        if not bool(counts.sum() > 0):
            raise UserError(
                "this run holds no length prior, so no lengths can be drawn: train it again with its corpus"
            )
        return torch.multinomial(counts, n, replacement=True, generator=generator)

    @property
    def knows_pairs(self) -> bool:
        """Whether lengths of samples follow those of their sources."""
        counts = self.statistics.pair_counts
        return self.masked and counts is not None and bool(counts.any())

    def fingerprint(self) -> str:
        return self.space.fingerprint()  # a cache holds latents as they are before normalisation


def estimate(latents: Iterable[Latents]) -> tuple[Tensor, Tensor]:
    """(mean (D,), scale ()) over the valid positions of some batches.

    mean: per channel. scale: population standard deviation of the centred values, all channels together.
    Summed in float64 on the CPU, so the number of batches does not blur it.
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
    """(n,) lengths of training texts in tokens -> (max_seq_len + 1,) counts; a text of no tokens cannot be a latent."""
    counts = torch.bincount(lengths.long().clamp(max=max_seq_len), minlength=max_seq_len + 1)
    if counts[0]:
        raise UserError(f"{int(counts[0])} training texts hold no tokens at all: take empty lines out of the corpus")
    return counts.float()

"""Lengths of texts given the lengths of their sources, from counts over the training pairs. No model, no training."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_PAIRS = 50  # a length is drawn from at least so many pairs, if there are


def count_pairs(sources: Tensor, texts: Tensor, shape: torch.Size) -> Tensor:
    """Lengths in tokens (n,) of sources and of their texts -> counts of `shape` (S + 1, L + 1); longer ones are
    clamped."""
    counts = torch.zeros(shape)
    places = (sources.long().clamp(max=shape[0] - 1), texts.long().clamp(max=shape[1] - 1))
    return counts.index_put_(places, torch.ones(len(texts)), accumulate=True)


def counts_near_source_length(counts: Tensor, sources: Tensor, enough: int = MIN_PAIRS) -> Tensor:
    """Counts of text lengths for each source, over the training pairs nearest in source length: at least `enough`
    pairs.

    counts: (S + 1, L + 1). sources: (n,) lengths in tokens. Returns (n, L + 1).
    """
    longest = len(counts) - 1
    below = torch.cat([torch.zeros_like(counts[:1]), counts]).cumsum(0)  # (S + 2, L + 1), of all shorter sources
    pairs, wanted = below.sum(1), min(enough, int(counts.sum()))
    found: dict[int, Tensor] = {}
    for source in sources.clamp(max=longest).tolist():
        if source not in found:
            radius = 0
            while True:
                first, last = max(source - radius, 0), min(source + radius, longest) + 1
                if pairs[last] - pairs[first] >= wanted:
                    break
                radius += 1
            found[source] = below[last] - below[first]
    return torch.stack([found[source] for source in sources.clamp(max=longest).tolist()])


def sample_length(counts: Tensor, uniform: Tensor) -> Tensor:
    """One length per row of counts (n, L + 1), by inversion of uniform (n,) in [0, 1): (n,). Lengths of count 0 are
    never drawn."""
    total = counts.double().cumsum(1)
    reached = total > uniform.double()[:, None] * total[:, -1:]
    return reached.int().argmax(1)

"""Confidence interval of the difference between two systems, by paired bootstrap resampling of the examples."""

from __future__ import annotations

import random
from collections.abc import Sequence

RESAMPLES = 10_000


def paired_bootstrap_ci(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of mean(second) - mean(first). Efron & Tibshirani 1993; Koehn 2004 for text metrics.

    first, second: one score (or success, as a bool) per example, in the same order; at least one example.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"paired_bootstrap_ci got {len(first)} and {len(second)} scores: give one of each per example, and at "
            "least one example"
        )
    rng, n = random.Random(seed), len(first)
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(resamples))
    return means[int(0.025 * resamples)], means[max(int(0.975 * resamples) - 1, 0)]

"""How sure a difference is: two scores of the same examples, drawn again and again with replacement, in pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence

RESAMPLES = 10_000


def paired_bootstrap_ci(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of mean(second) - mean(first). Efron & Tibshirani 1993; Koehn 2004 for scores of texts.

    first, second: a score, or whether it succeeded, of each example, in the same order; at least one.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} scores beside {len(second)}: give two of each example, and one example or more")
    rng, n = random.Random(seed), len(first)
    differences = [float(b) - float(a) for a, b in zip(first, second, strict=True)]
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(resamples))
    return means[int(0.025 * resamples)], means[max(int(0.975 * resamples) - 1, 0)]

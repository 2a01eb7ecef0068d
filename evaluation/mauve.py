"""MAUVE: how close the distribution of sampled texts is to that of references, from 0 to 1.

Pillutla et al. 2021, arXiv:2102.01454, with features of the scorer and the clustering of mauve-text. The number of
buckets decides the score (the same data give 0.94 or 0.45), so it follows one rule here and is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from evaluation.optional import optional_import
from evaluation.scorers import Scorer

ENOUGH = 1000  # texts a side; below it the score is mostly noise
MAX_LENGTH = 256  # tokens that the features see
SCALING = 5.0  # the paper's constant c
SEED = 25  # of the clustering


@dataclass(frozen=True)
class Mauve:
    """The score and what it depends on."""

    score: float
    n: int  # texts a side
    buckets: int
    small_n: bool  # fewer than ENOUGH texts: do not compare
    seed: int = SEED
    scaling: float = SCALING
    max_length: int = MAX_LENGTH

    def protocol(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "score"}


def num_buckets(n: int) -> int:
    """Clusters for n texts a side: mauve-text's own rule, stated here so that no later version changes the scores."""
    return max(2, round(n / 10))


def mauve(
    samples: Sequence[str], references: Sequence[str], scorer: Scorer, *, seed: int = SEED, real: bool = False
) -> Mauve:
    """MAUVE of two sets of texts, the longer one cut to the length of the shorter. Deterministic in the seed.

    real: the samples are real texts, too, which come again: their features are kept on disk as those of references.
    """
    n = min(len(samples), len(references))
    p, q = scorer.features(samples[:n], MAX_LENGTH, keep=real), scorer.features(references[:n], MAX_LENGTH, keep=True)
    return mauve_of_features(p, q, seed=seed)


def mauve_of_features(p: np.ndarray, q: np.ndarray, *, seed: int = SEED) -> Mauve:
    """MAUVE of two sets of feature vectors, (n, d) float32 each, the longer one cut.

    nan with fewer than two texts a side, where there is nothing to cluster.
    """
    library = optional_import("mauve", "mauve-text", "MAUVE")
    limits = optional_import("threadpoolctl", "threadpoolctl", "MAUVE").threadpool_limits
    n = min(len(p), len(q))
    if n < 2:
        return Mauve(math.nan, n, num_buckets(n), True, seed)
    if np.ptp(np.concatenate([p[:n], q[:n]]), axis=0).max() == 0:
        return Mauve(
            1.0, n, num_buckets(n), n < ENOUGH, seed
        )  # one and the same text on both sides: no axis to cluster along
    with _quiet_clustering(), limits(1, user_api="blas"):  # OpenBLAS beside OpenMP: 0.2 s alone, up to 20 s together
        found = library.compute_mauve(
            p_features=p[:n],
            q_features=q[:n],
            num_buckets=num_buckets(n),
            mauve_scaling_factor=SCALING,
            seed=seed,
            verbose=False,
        )
    return Mauve(min(float(found.mauve), 1.0), n, num_buckets(n), n < ENOUGH, seed)


@contextmanager
def _quiet_clustering() -> Iterator[None]:
    """faiss warns below 39 points a cluster; the rule of MAUVE gives it 20, always. The clusters stay the same."""
    faiss = optional_import("faiss", "faiss-cpu", "MAUVE")
    original = faiss.Kmeans
    faiss.Kmeans = partial(original, min_points_per_centroid=1)
    try:
        yield
    finally:
        faiss.Kmeans = original

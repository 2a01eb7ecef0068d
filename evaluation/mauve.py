"""MAUVE: similarity of the distributions of samples and references, from 0 to 1.

Pillutla et al. 2021, arXiv:2102.01454, with features of the scorer or embeddings of a sentence encoder, and the
clustering of mauve-text. The number of buckets changes the score (the same data give 0.94 or 0.45), so it follows one
rule here and is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from evaluation.optional import optional_import

MIN_TEXTS = 1000  # per side; with fewer the score is mostly noise
MAX_LENGTH = 256  # tokens of a text, for its features
SCALING = 5.0  # the paper's constant c, for features of a causal language model
EMBEDDING_SCALING = 8.0  # the same for embeddings of a sentence encoder, as the method's first release has it
SEED = 25  # seed of the clustering


class Featurizer(Protocol):
    """What MAUVE needs of a scorer (scorers.Scorer) or of a sentence encoder (encoders.SentenceEncoder)."""

    def features(self, texts: Sequence[str], max_length: int = ..., *, on_disk: bool = ...) -> np.ndarray:
        """Return (n, d) float32, one row per text."""


@dataclass(frozen=True)
class Mauve:
    """The score and the settings that it depends on."""

    score: float
    n: int  # texts per side
    buckets: int
    mauve_few_samples: bool  # fewer than MIN_TEXTS texts: do not compare
    seed: int = SEED
    scaling: float = SCALING
    max_length: int = MAX_LENGTH

    def protocol(self) -> dict[str, Any]:
        """Return every setting that the score depends on."""
        return {key: value for key, value in asdict(self).items() if key != "score"}


def num_buckets(n: int) -> int:
    """Return the number of clusters for n texts per side: mauve-text's rule, fixed here against later versions."""
    return max(2, round(n / 10))


def mauve(
    samples: Sequence[str],
    references: Sequence[str],
    model: Featurizer,
    *,
    seed: int = SEED,
    scaling: float = SCALING,
    cache_samples: bool = False,
) -> Mauve:
    """Compute MAUVE of two sets of texts, the larger one cut to the size of the smaller. Deterministic in the seed.

    model: a scorer, or a sentence encoder with scaling=EMBEDDING_SCALING. cache_samples: also cache the features of the
    samples on disk; for real texts, which are scored again.
    """
    n = min(len(samples), len(references))
    p = model.features(samples[:n], MAX_LENGTH, on_disk=cache_samples)
    q = model.features(references[:n], MAX_LENGTH, on_disk=True)
    return mauve_of_features(p, q, seed=seed, scaling=scaling)


def mauve_of_features(p: np.ndarray, q: np.ndarray, *, seed: int = SEED, scaling: float = SCALING) -> Mauve:
    """Compute MAUVE of two sets of feature vectors, (n, d) float32 each, the larger one cut.

    nan with fewer than two texts per side, which cannot be clustered.
    """
    library = optional_import("mauve", "mauve-text", "MAUVE")
    limits = optional_import("threadpoolctl", "threadpoolctl", "MAUVE").threadpool_limits
    n = min(len(p), len(q))
    if n < 2:
        return Mauve(math.nan, n, num_buckets(n), True, seed, scaling)
    if np.ptp(np.concatenate([p[:n], q[:n]]), axis=0).max() == 0:
        # the same text everywhere: there is no axis along which to cluster
        return Mauve(1.0, n, num_buckets(n), n < MIN_TEXTS, seed, scaling)
    # one BLAS thread: OpenBLAS threads together with OpenMP threads take up to 20 s instead of 0.2 s
    with _quiet_clustering(), limits(1, user_api="blas"):
        result = library.compute_mauve(
            p_features=p[:n],
            q_features=q[:n],
            num_buckets=num_buckets(n),
            mauve_scaling_factor=scaling,
            seed=seed,
            verbose=False,
        )
    return Mauve(min(float(result.mauve), 1.0), n, num_buckets(n), n < MIN_TEXTS, seed, scaling)


@contextmanager
def _quiet_clustering() -> Iterator[None]:
    """Silence the warning of faiss below 39 points per cluster; MAUVE's rule gives 20. The clusters stay the same."""
    faiss = optional_import("faiss", "faiss-cpu", "MAUVE")
    original = faiss.Kmeans
    faiss.Kmeans = partial(original, min_points_per_centroid=1)
    try:
        yield
    finally:
        faiss.Kmeans = original

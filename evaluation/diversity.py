"""Diversity of a set of texts: size of the vocabulary, and the share of repeated n-grams. Needs no reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.text_tokens import ngrams, tokens, vocabulary

NGRAM_SIZES = (2, 3, 4)


def unique_wordcount(texts: Sequence[str]) -> dict[str, float]:
    """Count distinct words, as scikit-learn's count vectorizer defines them."""
    return {"unique_wordcount": len(vocabulary(texts))}


def ngram_diversity(texts: Sequence[str]) -> dict[str, float]:
    """Compute the share of n-grams that repeat an earlier one, pooled over all texts, and the diversity:

        repetition_n = 1 - unique_n / total_n,     diversity = prod over n = 2, 3, 4 of (1 - repetition_n).

    Su et al. 2022, arXiv:2202.06417, pooled over the corpus instead of within each text. It falls with the number of
    texts: compare sets of equal size. nan if no text has n words. Keys keep the published spelling "repitition".
    """
    words = [tokens(text) for text in texts]
    scores: dict[str, float] = {}
    diversity = 1.0
    for n in NGRAM_SIZES:
        unique: set[tuple[str, ...]] = set()
        total = 0
        for text in words:
            unique.update(ngrams(text, n))
            total += max(len(text) - n + 1, 0)
        unique_share = len(unique) / total if total else math.nan
        scores[f"{n}gram_repitition"] = 1 - unique_share
        diversity *= unique_share
    return scores | {"diversity": diversity}

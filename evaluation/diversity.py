"""How varied a set of texts is: its vocabulary, and how often it repeats its n-grams. Needs no reference."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.text_tokens import ngrams, tokens, vocabulary

SIZES = (2, 3, 4)  # of the n-grams


def unique_wordcount(texts: Sequence[str]) -> dict[str, float]:
    """Number of distinct words, as scikit-learn's count vectoriser defines them."""
    return {"unique_wordcount": len(vocabulary(texts))}


def ngram_diversity(texts: Sequence[str]) -> dict[str, float]:
    """Share of n-grams that repeat an earlier one, pooled over all texts, and the product of what is left:

        repetition_n = 1 - unique_n / total_n,     diversity = prod over n = 2, 3, 4 of (1 - repetition_n).

    Su et al. 2022, arXiv:2202.06417, pooled over the corpus instead of within each text. It falls as texts grow
    in number: compare sets of equal size. nan where no text has n words. Keys keep the published "repitition".
    """
    words = [tokens(text) for text in texts]
    scores: dict[str, float] = {}
    diversity = 1.0
    for n in SIZES:
        unique: set[tuple[str, ...]] = set()
        total = 0
        for text in words:
            unique.update(ngrams(text, n))
            total += max(len(text) - n + 1, 0)
        fresh = len(unique) / total if total else math.nan
        scores[f"{n}gram_repitition"] = 1 - fresh
        diversity *= fresh
    return scores | {"diversity": diversity}

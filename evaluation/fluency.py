"""Perplexity: how surprised a language model is by the texts.

It falls with fluency, and with dullness: read it beside diversity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.scorers import Scorer


def perplexity(texts: Sequence[str], scorer: Scorer) -> dict[str, float]:
    """Perplexity with the start token prepended, over the texts that are not empty.

    `perplexity` is the arithmetic mean over texts of exp(mean negative log-likelihood of the text's tokens), as it was
    published for this method and as Hugging Face's metric computes it: a few garbled texts can rule it.
    `corpus_perplexity` is exp(all negative log-likelihood / all tokens). `empty` counts the texts that have no
    perplexity; both are nan where all are so.
    """
    found = scorer.nll(texts)
    scored = [(nll, count) for nll, count in zip(found.nll, found.tokens, strict=True) if count]
    each = [_exp(nll / count) for nll, count in scored]
    total = sum(count for _, count in scored)
    return {
        "perplexity": sum(each) / len(each) if each else math.nan,
        "corpus_perplexity": _exp(sum(nll for nll, _ in scored) / total) if total else math.nan,
        "empty": len(texts) - len(scored),
    }


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf  # math.exp raises where a float64 ends

"""Perplexity of texts under a causal language model.

It is low for fluent texts and also for dull, repetitive ones: read it together with diversity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.scorers import Scorer


def perplexity(texts: Sequence[str], scorer: Scorer) -> dict[str, float]:
    """Compute perplexities with the start token prepended, over the texts that are not empty.

    `perplexity` is the mean over texts of exp(mean negative log-likelihood of the text's tokens), as it was published
    for this method and as Hugging Face's metric computes it: a few garbled texts can dominate it.
    `corpus_perplexity` is exp(total negative log-likelihood / total tokens). `empty` counts the texts without a
    perplexity. Both perplexities are nan if all texts are empty.
    """
    likelihood = scorer.nll(texts)
    scored = [(nll, count) for nll, count in zip(likelihood.nll, likelihood.tokens, strict=True) if count]
    per_text = [_exp(nll / count) for nll, count in scored]
    num_tokens = sum(count for _, count in scored)
    return {
        "perplexity": sum(per_text) / len(per_text) if per_text else math.nan,
        "corpus_perplexity": _exp(sum(nll for nll, _ in scored) / num_tokens) if num_tokens else math.nan,
        "empty": len(texts) - len(scored),
    }


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf  # math.exp raises OverflowError above the float64 range

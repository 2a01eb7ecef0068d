"""The table of metrics of a set of texts. To add one: write its function, and add its row here.

A metric is a function of the texts and of what they may be judged by; it returns named numbers. It never fails on empty
texts or on an empty set: a number that cannot be had is nan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.diversity import ngram_diversity, unique_wordcount
from evaluation.fluency import perplexity
from evaluation.memorization import NgramIndex, memorization
from evaluation.optional import MissingPackage
from evaluation.scorers import Scorer
from evaluation.text_tokens import is_empty


@dataclass(frozen=True)
class MetricContext:
    """What texts are judged by."""

    scorer: Scorer | None = None
    training: NgramIndex | None = None


Metric = Callable[[Sequence[str], MetricContext], dict[str, float]]

METRICS: dict[str, Metric] = {
    "empty": lambda texts, by: {"empty": sum(map(is_empty, texts))},
    "perplexity": lambda texts, by: perplexity(texts, by.scorer) if by.scorer else {},
    "unique_wordcount": lambda texts, by: unique_wordcount(texts),
    "diversity": lambda texts, by: ngram_diversity(texts),
    "memorization": lambda texts, by: memorization(texts, by.training) if by.training else {},
}


def measure(
    texts: Sequence[str], judges: MetricContext, names: Sequence[str] = tuple(METRICS)
) -> tuple[dict[str, float], list[str]]:
    """Every metric named, and the packages for want of which some were left out."""
    found: dict[str, float] = {}
    missing: list[str] = []
    for name in names:
        try:
            found |= METRICS[name](texts, judges)
        except MissingPackage as error:
            missing.append(error.package)
    return found, missing

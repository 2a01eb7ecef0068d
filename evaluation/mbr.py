"""Several candidates per example: which agrees best with the others (minimum Bayes risk), which with the reference.

Candidates come as rows, one per example: candidates[example][k].
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial

from evaluation.overlap import ROUGES, rouge_each, sentence_bleu

Utility = Callable[[str, str], float]  # (candidate, the other, taken for the truth) -> agreement


def utility_of(name: str, tokenizer: str = "13a") -> Utility:
    """A utility by name: one of ROUGES, or sacrebleu (of a sentence, with its effective order)."""
    if name == "sacrebleu":
        return partial(sentence_bleu, tokenizer=tokenizer)
    if name in ROUGES:
        return lambda candidate, other: rouge_each(candidate, other)[name]
    raise ValueError(f"{name} is no utility for minimum-Bayes-risk decoding: one of {', '.join(ROUGES)}, sacrebleu")


def choose(candidates: Sequence[Sequence[str]], utility: str = "rouge2", *, tokenizer: str = "13a") -> list[str]:
    """Of each example the candidate whose summed utility against its other candidates is largest, the first of equals.

    Kumar & Byrne 2004; K (K - 1) comparisons for K candidates. An example needs at least one candidate.
    """
    agreement = utility_of(utility, tokenizer)
    return [
        row[_best([sum(agreement(one, other) for j, other in enumerate(row) if j != i) for i, one in enumerate(row)])]
        for row in candidates
    ]


def oracle(candidates: Sequence[Sequence[str]], references: Sequence[str]) -> dict[str, float]:
    """Mean over examples of the largest ROUGE among the candidates, each ROUGE on its own: a perfect choice."""
    scores = [
        [rouge_each(one, reference) for one in row] for row, reference in zip(candidates, references, strict=True)
    ]
    return {
        name: sum(max(each[name] for each in row) for row in scores) / len(scores) if scores else math.nan
        for name in ROUGES
    }


def shuffled(predictions: Sequence[str], seed: int) -> list[str]:
    """The predictions in random order: against the references they show what chance alone scores."""
    mixed = list(predictions)
    random.Random(seed).shuffle(mixed)
    return mixed


def rows(predictions: Sequence[str], k: int) -> list[list[str]]:
    """Predictions listed example by example, k each -> one row per example."""
    if k < 1 or len(predictions) % k:
        raise ValueError(f"{len(predictions)} predictions do not divide into rows of {k} candidates")
    return [list(predictions[i : i + k]) for i in range(0, len(predictions), k)]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])

"""Several candidates per example: which agrees best with the others (minimum Bayes risk), which with the reference.

Candidates come as rows, one per example: candidates[example][k]. To add a utility: its function of two lists of texts,
and its row in UTILITIES.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from evaluation.diffuseq import sentence_bleu4
from evaluation.overlap import ROUGES, bertscore_each, chrf, exact_match, rouge_each, sentence_bleu

Utility = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # candidates, the others taken for the truth


def _each(label_agreement: Callable[[str, str], float]) -> Utility:
    return lambda candidates, others: [label_agreement(*pair) for pair in zip(candidates, others, strict=True)]


def _rouge(name: str) -> Utility:
    return _each(lambda candidate, other: rouge_each(candidate, other, names=(name,))[name])


# name -> (tokenizer of sacreBLEU, model of BERTScore, device) -> utility
UTILITIES: dict[str, Callable[[str, str, str], Utility]] = {
    **{name: lambda tokenizer, model, device, name=name: _rouge(name) for name in ROUGES},  # type: ignore[misc]
    "sacrebleu": lambda tokenizer, model, device: _each(lambda c, o: sentence_bleu(c, o, tokenizer=tokenizer)),
    "diffuseq_bleu": lambda tokenizer, model, device: _each(sentence_bleu4),
    "chrf": lambda tokenizer, model, device: _each(chrf),
    "exact_match": lambda tokenizer, model, device: _each(lambda c, o: exact_match([c], [o])),
    "bertscore": lambda tokenizer, model, device: lambda c, o: bertscore_each(c, o, model, device=device)[2],
}


def mbr_select(
    candidates: Sequence[Sequence[str]],
    utility: str = "rouge2",
    *,
    tokenizer: str = "13a",
    bertscore_model: str = "roberta-large",
    device: str = "cpu",
) -> list[str]:
    """Of each example the candidate whose summed utility against its other candidates is largest, the first of equals.

    Kumar & Byrne 2004. utility: one of UTILITIES; K (K - 1) comparisons for K candidates, each pair of texts once. An
    example needs at least one candidate.
    """
    if utility not in UTILITIES:
        raise ValueError(f"{utility} is no utility for minimum-Bayes-risk decoding: one of {', '.join(UTILITIES)}")
    against = [[row[:i] + row[i + 1 :] for i in range(len(row))] for row in map(list, candidates)]
    pairs = dict.fromkeys(
        (one, other)
        for row, others in zip(candidates, against, strict=True)
        for one, rest in zip(row, others, strict=True)
        for other in rest
    )
    found = UTILITIES[utility](tokenizer, bertscore_model, device)([a for a, _ in pairs], [b for _, b in pairs])
    label_agreement = dict(zip(pairs, found, strict=True))
    sums = [
        [sum(label_agreement[one, other] for other in rest) for one, rest in zip(row, others, strict=True)]
        for row, others in zip(candidates, against, strict=True)
    ]
    return [row[_best(scores)] for row, scores in zip(candidates, sums, strict=True)]


def oracle(candidates: Sequence[Sequence[str]], references: Sequence[str]) -> dict[str, float]:
    """Mean over examples of the largest ROUGE among the candidates, each ROUGE on its own: a perfect choice."""
    scores = [
        [rouge_each(one, reference) for one in row] for row, reference in zip(candidates, references, strict=True)
    ]
    return {
        name: sum(max(each[name] for each in row) for row in scores) / len(scores) if scores else math.nan
        for name in ROUGES
    }


def oracle_bleu(candidates: Sequence[Sequence[str]], references: Sequence[str], *, tokenizer: str = "13a") -> list[str]:
    """Of each example the candidate with the largest sentence BLEU against its reference, the first of equals."""
    return [
        row[_best([sentence_bleu(one, reference, tokenizer=tokenizer) for one in row])]
        for row, reference in zip(candidates, references, strict=True)
    ]


def shuffle_predictions(predictions: Sequence[str], seed: int) -> list[str]:
    """Every prediction moved to another example: against the references they show what chance alone scores."""
    order = list(range(len(predictions)))
    random.Random(seed).shuffle(order)
    mixed = list(predictions)
    for here, there in zip(order, order[1:] + order[:1], strict=True):  # one cycle: none stays where it was
        mixed[there] = predictions[here]
    return mixed


def rows(predictions: Sequence[str], k: int) -> list[list[str]]:
    """Predictions listed example by example, k each -> one row per example."""
    if k < 1 or len(predictions) % k:
        raise ValueError(f"{len(predictions)} predictions do not divide into rows of {k} candidates")
    return [list(predictions[i : i + k]) for i in range(0, len(predictions), k)]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])

"""Selection among several candidates per example: minimum Bayes risk (MBR), and oracles, which use the reference.

Candidates are nested by example: candidates[example][k]. To add a utility: write its function of two lists of texts,
and add its row to UTILITIES.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.diffuseq import sentence_bleu4
from evaluation.overlap import ROUGES, Reference, bertscore_each, chrf, exact_match, rouge_each, sentence_bleu

Utility = Callable[
    [Sequence[str], Sequence[str]], Sequence[float]
]  # (candidates, pseudo-references) -> one score per pair


def _each(agreement: Callable[[str, str], float]) -> Utility:
    return lambda candidates, others: [agreement(*pair) for pair in zip(candidates, others, strict=True)]


def _rouge(name: str) -> Callable[[str, str, str], Utility]:
    return lambda tokenizer, model, device: _each(lambda c, o: rouge_each(c, o, names=(name,))[name])


# name -> (tokenizer of sacreBLEU, model of BERTScore, device) -> utility
UTILITIES: dict[str, Callable[[str, str, str], Utility]] = {
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "rougeLsum": _rouge("rougeLsum"),
    "sacrebleu": lambda tokenizer, model, device: _each(lambda c, o: sentence_bleu(c, o, tokenizer=tokenizer)),
    "diffuseq_bleu": lambda tokenizer, model, device: _each(sentence_bleu4),
    "chrf": lambda tokenizer, model, device: _each(chrf),
    "exact_match": lambda tokenizer, model, device: _each(lambda c, o: exact_match([c], [o])),
    "bertscore": lambda tokenizer, model, device: lambda c, o: bertscore_each(c, o, model, device=device)[2],
}


@dataclass(frozen=True)
class Selection:
    """One candidate of each example."""

    texts: list[str]
    tie_share: float  # share of examples whose candidates differ and yet have equal utilities; nan without examples


def mbr_select(
    candidates: Sequence[Sequence[str]],
    utility: str = "rouge2",
    *,
    tokenizer: str = "13a",
    bertscore_model: str = "roberta-large",
    device: str = "cpu",
) -> list[str]:
    """Select the candidate of each example with the largest total utility against its other candidates; see select."""
    return select(candidates, utility, tokenizer=tokenizer, bertscore_model=bertscore_model, device=device).texts


def select(
    candidates: Sequence[Sequence[str]],
    utility: str = "rouge2",
    *,
    tokenizer: str = "13a",
    bertscore_model: str = "roberta-large",
    device: str = "cpu",
) -> Selection:
    """Select the candidate of each example with the largest total utility against its other candidates.

    Kumar & Byrne 2004. The first of equal candidates wins, so a large share of ties means that nothing was selected.
    utility: one of UTILITIES; it takes K (K - 1) comparisons for K candidates, each pair of texts once. An example
    needs at least one candidate.
    """
    if utility not in UTILITIES:
        raise ValueError(f"{utility} is not a utility of MBR decoding: give one of {', '.join(UTILITIES)}")
    others = [[row[:i] + row[i + 1 :] for i in range(len(row))] for row in map(list, candidates)]
    pairs = dict.fromkeys(
        (one, other)
        for row, rests in zip(candidates, others, strict=True)
        for one, rest in zip(row, rests, strict=True)
        for other in rest
    )
    scores = UTILITIES[utility](tokenizer, bertscore_model, device)([a for a, _ in pairs], [b for _, b in pairs])
    agreement = dict(zip(pairs, scores, strict=True))
    sums = [
        [sum(agreement[one, other] for other in rest) for one, rest in zip(row, rests, strict=True)]
        for row, rests in zip(candidates, others, strict=True)
    ]
    ties = [
        # two candidates always agree equally with each other where the utility is symmetric
        len(set(row)) > 1 and len(row) > 2 and max(totals) - min(totals) <= 1e-9 * abs(max(totals))
        for row, totals in zip(candidates, sums, strict=True)
    ]
    chosen = [row[_argmax(totals)] for row, totals in zip(candidates, sums, strict=True)]
    return Selection(chosen, sum(ties) / len(ties) if ties else math.nan)


def oracle(candidates: Sequence[Sequence[str]], references: Sequence[Reference]) -> dict[str, float]:
    """Compute the mean over examples of the largest ROUGE among the candidates, for each ROUGE variant by itself."""
    scores = [
        [rouge_each(one, reference) for one in row] for row, reference in zip(candidates, references, strict=True)
    ]
    return {
        name: sum(max(each[name] for each in row) for row in scores) / len(scores) if scores else math.nan
        for name in ROUGES
    }


def oracle_bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Reference], *, tokenizer: str = "13a"
) -> list[str]:
    """Select the candidate of each example with the largest sentence BLEU against its reference (first of equals)."""
    return [
        row[_argmax([sentence_bleu(one, reference, tokenizer=tokenizer) for one in row])]
        for row, reference in zip(candidates, references, strict=True)
    ]


def shuffle_predictions(predictions: Sequence[str], seed: int) -> list[str]:
    """Move every prediction to another example: scores against the references are then the chance level."""
    order = list(range(len(predictions)))
    random.Random(seed).shuffle(order)
    moved = list(predictions)
    for source, target in zip(order, order[1:] + order[:1], strict=True):  # one cycle: no prediction stays in place
        moved[target] = predictions[source]
    return moved


def distinct_share(candidates: Sequence[Sequence[str]]) -> float:
    """Compute the mean share of distinct texts among the candidates of an example; nan without examples."""
    shares = [len(set(row)) / len(row) for row in candidates]
    return statistics.fmean(shares) if shares else math.nan


def _argmax(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])

"""The metrics of DiffuSeq: of a text against its reference, and of the candidates of a source among each other.

Gong et al. 2023, arXiv:2210.08933, section 4.1, as their code computes them: words are what blanks separate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import permutations


def sentence_bleu4(prediction: str, reference: str) -> float:
    """BLEU of one sentence in [0, 1], smoothed as method 4 of Chen & Cherry 2014, with words separated by blanks.

    A count of zero becomes 1 / (2^k * 5 / ln(words)), k counting the zeros so far, as in nltk; no word in common: 0.
    """
    words, wanted = prediction.split(), reference.split()
    if not words:
        return 0.0
    logs, zeros = 0.0, 1
    for n in (1, 2, 3, 4):
        found, total = _matches(words, wanted, n)
        if n == 1 and not found:
            return 0.0
        if not found and len(words) > 1:
            found = 1 / (2**zeros * 5 / math.log(len(words)))
            zeros += 1
        if not found:
            continue  # a single word has no pairs
        logs += math.log(found / total) / 4
    brevity = 1.0 if len(words) > len(wanted) else math.exp(1 - len(wanted) / len(words))
    return brevity * math.exp(logs)


def _matches(words: Sequence[str], wanted: Sequence[str], n: int) -> tuple[float, int]:
    """n-grams in common, none more often than the reference has it, and n-grams of the prediction, at least one."""
    mine, theirs = _grams(words, n), _grams(wanted, n)
    return float((mine & theirs).total()), max(1, mine.total())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct1(texts: Sequence[str]) -> float:
    """Mean share of different words within a text, 0 where it is empty."""
    return _mean([len(set(words)) / len(words) if (words := text.split()) else 0.0 for text in texts])


def reference_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """diffuseq_bleu (mean of sentences, [0, 1]), dist1 and mean_length in words."""
    pairs = zip(predictions, references, strict=True)
    return {
        "diffuseq_bleu": _mean([sentence_bleu4(*pair) for pair in pairs]),
        "dist1": distinct1(predictions),
        "mean_length": _mean([len(text.split()) for text in predictions]),
    }


def candidate_diversity(candidates: Sequence[Sequence[str]]) -> dict[str, float]:
    """diffuseq_self_bleu: mean sentence BLEU of ordered pairs of candidates of a source, low where they differ; div4:
    share of different 4-grams among all of a source. nan for single candidates."""
    rows = [row for row in candidates if len(row) > 1]
    return {
        "diffuseq_self_bleu": _mean([_mean([sentence_bleu4(a, b) for a, b in permutations(row, 2)]) for row in rows]),
        "div4": _mean([_distinct4(row) for row in rows]),
    }


def _distinct4(row: Sequence[str]) -> float:
    grams = sum((_grams(text.split(), 4) for text in row), Counter())
    return len(grams) / grams.total() if grams else 0.0


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan

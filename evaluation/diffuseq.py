"""Metrics of DiffuSeq: prediction against reference, and the candidates of a source among each other.

Gong et al. 2023, arXiv:2210.08933, section 4.1, as their code computes them: words are separated by spaces. Where a
script writes none, characters are words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from itertools import permutations
from operator import or_

from evaluation.overlap import Reference, alternatives
from evaluation.text_tokens import separate_characters


def sentence_bleu4(prediction: str, reference: Reference) -> float:
    """Compute BLEU-4 of one sentence in [0, 1], smoothed by method 4 of Chen & Cherry 2014, words separated by spaces.

    A count of zero becomes 1 / (2^k * 5 / ln(words)), where k counts the zeros so far, as in nltk. Without a common
    word the score is 0. Of several references, an n-gram may occur in any, and the closest length counts (the shorter
    of two).
    """
    words, targets = _split(prediction), [_split(text) for text in alternatives(reference)]
    if not words:
        return 0.0
    logs, zeros = 0.0, 1
    for n in (1, 2, 3, 4):
        matches, total = _matches(words, targets, n)
        if n == 1 and not matches:
            return 0.0
        if not matches and len(words) > 1:
            matches = 1 / (2**zeros * 5 / math.log(len(words)))
            zeros += 1
        if not matches:
            continue  # a single word has no bigram
        logs += math.log(matches / total) / 4
    length = min(map(len, targets), key=lambda length: (abs(length - len(words)), length))
    brevity_penalty = 1.0 if len(words) > length else math.exp(1 - length / len(words))
    return brevity_penalty * math.exp(logs)


def _split(text: str) -> list[str]:
    return separate_characters(text).split()


def _matches(words: Sequence[str], targets: Sequence[Sequence[str]], n: int) -> tuple[float, int]:
    """Return the number of common n-grams (clipped at their largest count in a reference) and of n-grams, or 1."""
    mine, theirs = _ngram_counts(words, n), reduce(or_, (_ngram_counts(target, n) for target in targets))
    return float((mine & theirs).total()), max(1, mine.total())


def _ngram_counts(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def distinct1(texts: Sequence[str]) -> float:
    """Compute the mean share of distinct words within a text; an empty text counts as 0."""
    return _mean([len(set(words)) / len(words) if (words := _split(text)) else 0.0 for text in texts])


def reference_scores(predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
    """Compute diffuseq_bleu (mean over sentences, in [0, 1]), dist1 and mean_length (words)."""
    pairs = zip(predictions, references, strict=True)
    return {
        "diffuseq_bleu": _mean([sentence_bleu4(*pair) for pair in pairs]),
        "dist1": distinct1(predictions),
        "mean_length": _mean([len(_split(text)) for text in predictions]),
    }


def candidate_diversity(candidates: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute the diversity among the candidates of each source; candidates: (examples, K).

    diffuseq_self_bleu: mean sentence BLEU over ordered pairs of candidates, low if they differ. div4: share of distinct
    4-grams among all candidates of a source. Both are nan if K = 1.
    """
    groups = [group for group in candidates if len(group) > 1]
    return {
        "diffuseq_self_bleu": _mean(
            [_mean([sentence_bleu4(a, b) for a, b in permutations(group, 2)]) for group in groups]
        ),
        "div4": _mean([_distinct4(group) for group in groups]),
    }


def _distinct4(group: Sequence[str]) -> float:
    counts = sum((_ngram_counts(_split(text), 4) for text in group), Counter())
    return len(counts) / counts.total() if counts else 0.0


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else math.nan

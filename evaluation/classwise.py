"""Samples of every class against references of every class: MAUVE as a matrix, and which class each sample reads like.

A model that ignores its condition has equal rows; one that follows it is good on the diagonal, and no better beside it
than real texts are. Sampling, files and pictures are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.classifiers import NO_CLASS, Classifier
from evaluation.local_classifier import label_agreement
from evaluation.mauve import MAX_LENGTH, Mauve, mauve_of_features
from evaluation.optional import MissingPackage
from evaluation.scorers import Scorer

Matrix = list[list[float]]
Texts = Mapping[int, Sequence[str]]  # class -> texts


@dataclass
class PerClassResult:
    """A row for each class asked for. rows: their numbers."""

    rows: list[int]
    mauve: dict[str, Matrix] = field(default_factory=dict)  # split -> (rows, classes)
    judged: Matrix = field(default_factory=list)  # (rows, classes + 1): shares judged of each class; the last: of none
    scores: list[Mauve] = field(default_factory=list)  # every score with what it depends on
    missing: list[str] = field(default_factory=list)  # packages for want of which MAUVE is left out

    def as_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "mauve": self.mauve, "judged": self.judged}


class Features:
    """Features of sets of texts for MAUVE, computed once per set, however many pairs it stands in.

    A set is known by being the same object; all are kept as long as this object is.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._known: dict[int, tuple[Sequence[str], np.ndarray]] = {}  # the texts, too: an id may not come again

    def __call__(self, texts: Sequence[str], *, keep: bool = False) -> np.ndarray:
        """(n, d) float32. keep: on disk, too, for texts that come again."""
        if id(texts) not in self._known:
            self._known[id(texts)] = texts, self.scorer.features(texts, MAX_LENGTH, keep=keep)
        return self._known[id(texts)][1]


def compare(
    samples: Texts,
    references: Mapping[str, Texts],
    features: Features | None = None,
    classifier: Classifier | None = None,
) -> PerClassResult:
    """MAUVE of every class's samples against every class's references of each split; what the classifier reads.

    Sets are cut to one length, that of the smallest: the number of texts decides a score, and scores of one matrix
    should compare.
    """
    found = PerClassResult(sorted(samples))
    if features is not None:
        try:
            _fill_mauve(found, samples, references, features)
        except MissingPackage as error:
            found.missing.append(error.package)
    if classifier is not None:
        found.judged = [_shares(classifier.judge(samples[c]), len(classifier.class_names)) for c in found.rows]
    return found


def label_accuracy(classifier: Classifier, texts: Sequence[str], labels: Sequence[int]) -> dict[str, Any]:
    """Share of texts judged of the class that each was asked for: accuracy, n, by_class."""
    return label_agreement(classifier.judge(texts), labels, classifier.class_names)


def average(found: Sequence[PerClassResult]) -> PerClassResult:
    """The mean of the matrices of several seeds, entry by entry, nan left out."""
    first = found[0]
    mean = PerClassResult(first.rows, missing=first.missing, scores=[score for one in found for score in one.scores])
    mean.mauve = {split: _mean([one.mauve[split] for one in found]) for split in first.mauve}
    mean.judged = _mean([one.judged for one in found])
    return mean


def _fill_mauve(found: PerClassResult, samples: Texts, references: Mapping[str, Texts], features: Features) -> None:
    sets = [*samples.values(), *(texts for classes in references.values() for texts in classes.values())]
    n = min(map(len, sets))
    for split, classes in references.items():
        columns = [features(classes[d], keep=True)[:n] for d in sorted(classes)]
        scores = [[mauve_of_features(features(samples[c])[:n], column) for column in columns] for c in found.rows]
        found.mauve[split] = [[score.score for score in row] for row in scores]
        found.scores += [score for row in scores for score in row]


def _shares(judged: Sequence[int], classes: int) -> list[float]:
    if not judged:
        return [math.nan] * (classes + 1)
    return [sum(c == d for c in judged) / len(judged) for d in (*range(classes), NO_CLASS)]


def _mean(matrices: Sequence[Matrix]) -> Matrix:
    def mean(values: Sequence[float]) -> float:
        good = [value for value in values if math.isfinite(value)]
        return sum(good) / len(good) if good else math.nan

    return [[mean(entries) for entries in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]

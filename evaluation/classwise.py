"""Class-conditional samples: MAUVE of every class against every class as a matrix, and the predicted classes.

A model that ignores its condition has equal rows; one that follows it has a high diagonal, and off the diagonal the
values of real texts. Sampling, files and plots belong to the caller.
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
TextsByClass = Mapping[int, Sequence[str]]


@dataclass
class PerClassResult:
    """Results with one matrix row per sampled class."""

    classes: list[int]  # the class of each row
    mauve: dict[str, Matrix] = field(default_factory=dict)  # split -> (rows, all classes)
    predicted_shares: Matrix = field(default_factory=list)  # (rows, all classes + 1); the last column: NO_CLASS
    mauve_scores: list[Mauve] = field(default_factory=list)  # every score with its settings
    missing_packages: list[str] = field(default_factory=list)  # without them MAUVE is skipped

    def as_dict(self) -> dict[str, Any]:
        """Return the data that is written to a file."""
        return {"classes": self.classes, "mauve": self.mauve, "predicted_shares": self.predicted_shares}


class FeatureCache:
    """MAUVE features of sets of texts, computed once per set although it is part of many pairs.

    A set is identified by its object; the cache keeps every set alive.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._by_id: dict[int, tuple[Sequence[str], np.ndarray]] = {}  # with the texts: an id must not be reused

    def __call__(self, texts: Sequence[str], *, on_disk: bool = False) -> np.ndarray:
        """Return (n, d) float32. on_disk: also cache on disk; for texts that are scored again."""
        if id(texts) not in self._by_id:
            self._by_id[id(texts)] = texts, self.scorer.features(texts, MAX_LENGTH, on_disk=on_disk)
        return self._by_id[id(texts)][1]


def compare_classes(
    samples: TextsByClass,
    references: Mapping[str, TextsByClass],
    features: FeatureCache | None = None,
    classifier: Classifier | None = None,
) -> PerClassResult:
    """Compute MAUVE of each class's samples against each class's references of each split, and predicted classes.

    All sets are cut to the size of the smallest: MAUVE depends on the number of texts, and the scores of one matrix
    have to be comparable.
    """
    result = PerClassResult(sorted(samples))
    if features is not None:
        try:
            _add_mauve(result, samples, references, features)
        except MissingPackage as error:
            result.missing_packages.append(error.package)
    if classifier is not None:
        num_classes = len(classifier.class_names)
        result.predicted_shares = [_shares(classifier.predict(samples[c]), num_classes) for c in result.classes]
    return result


def label_accuracy(classifier: Classifier, texts: Sequence[str], labels: Sequence[int]) -> dict[str, Any]:
    """Compute how often the predicted class is the requested one: accuracy, n, by_class."""
    return label_agreement(classifier.predict(texts), labels, classifier.class_names)


def average_seeds(results: Sequence[PerClassResult]) -> PerClassResult:
    """Average the matrices of several seeds entry by entry, ignoring nan."""
    first = results[0]
    mean = PerClassResult(
        first.classes,
        missing_packages=first.missing_packages,
        mauve_scores=[score for result in results for score in result.mauve_scores],
    )
    mean.mauve = {split: _mean([result.mauve[split] for result in results]) for split in first.mauve}
    mean.predicted_shares = _mean([result.predicted_shares for result in results])
    return mean


def _add_mauve(
    result: PerClassResult, samples: TextsByClass, references: Mapping[str, TextsByClass], features: FeatureCache
) -> None:
    sets = [*samples.values(), *(texts for classes in references.values() for texts in classes.values())]
    n = min(map(len, sets))
    for split, classes in references.items():
        columns = [features(classes[d], on_disk=True)[:n] for d in sorted(classes)]
        scores = [[mauve_of_features(features(samples[c])[:n], column) for column in columns] for c in result.classes]
        result.mauve[split] = [[score.score for score in row] for row in scores]
        result.mauve_scores += [score for row in scores for score in row]


def _shares(predicted: Sequence[int], num_classes: int) -> list[float]:
    """Return the share of each class and, last, of NO_CLASS."""
    if not predicted:
        return [math.nan] * (num_classes + 1)
    return [sum(c == d for c in predicted) / len(predicted) for d in (*range(num_classes), NO_CLASS)]


def _mean(matrices: Sequence[Matrix]) -> Matrix:
    def mean(values: Sequence[float]) -> float:
        finite = [value for value in values if math.isfinite(value)]
        return sum(finite) / len(finite) if finite else math.nan

    return [[mean(entries) for entries in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]

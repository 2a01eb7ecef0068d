"""Whether a linear model can tell samples from real texts: a classifier two-sample test on words and pairs of words.

Lopez-Paz & Oquab 2017, arXiv:1610.06545. No neural network judges here, so that nothing of a system that writes texts
can be a part of its judge. It sees words, their frequencies and neighbors, and nothing of longer range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.optional import optional_import
from evaluation.text_tokens import is_empty, ngrams, tokens

FOLDS = 5
SEED = 0  # of the folds
MIN_TEXTS = 2 * FOLDS  # per side


def linear_auc(
    texts: Sequence[str],
    held_out: Sequence[str],
    *,
    seed: int = SEED,
    paired: bool = False,
    sources: Sequence[str] | None = None,
) -> dict[str, float]:
    """Compute the area under the ROC curve with which logistic regression tells texts from held-out texts.

    0.5: it cannot tell; 1: it always can. Counts of words and of pairs of words, with their case; the mean over
    cross-validation folds of texts that it was not trained on; the larger side is cut. It grows with the number of
    texts, since more of them train it: compare sets of equal size. nan below MIN_TEXTS texts per side.

    paired: text i and held-out text i have one source, and so are in one fold. In separate folds the words that they
    share would speak for the label of the other one: copies of the held-out texts would score far below 0.5.
    sources: the source of text i and of held-out text i, where several of them have one; implies paired.
    """
    n = min(len(texts), len(held_out))
    if n < MIN_TEXTS:
        return {"linear_auc": math.nan}
    text = optional_import("sklearn.feature_extraction.text", "scikit-learn", "telling samples from real texts")
    linear = optional_import("sklearn.linear_model", "scikit-learn", "telling samples from real texts")
    selection = optional_import("sklearn.model_selection", "scikit-learn", "telling samples from real texts")
    counts = text.CountVectorizer(analyzer=lambda words: list(_terms(words)))
    both = [*texts[:n], *held_out[:n]]
    if all(is_empty(one) for one in both):
        return {"linear_auc": 0.5}
    folds: dict[str, Any] = {"cv": selection.StratifiedKFold(FOLDS, shuffle=True, random_state=seed)}
    if paired or sources is not None:
        groups: list[Any] = [*range(n)] if sources is None else [*sources[:n]]
        if len(set(groups)) < FOLDS:
            return {"linear_auc": math.nan}
        folds = {"cv": selection.GroupKFold(FOLDS, shuffle=True, random_state=seed), "groups": groups * 2}
    scores: Any = selection.cross_val_score(
        linear.LogisticRegression(solver="liblinear", random_state=seed),
        counts.fit_transform(both),
        [1] * n + [0] * n,
        scoring="roc_auc",
        **folds,
    )
    return {"linear_auc": float(scores.mean())}


def _terms(text: str) -> Iterator[str]:
    """Yield the words of a text and its pairs of neighboring words."""
    found = [word for word in tokens(text) if not is_empty(word)]  # spaces beyond the first between words
    yield from found
    yield from (" ".join(pair) for pair in ngrams(found, 2))

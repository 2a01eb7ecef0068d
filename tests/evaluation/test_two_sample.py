from __future__ import annotations

import math
import random

import numpy as np
import pytest

from evaluation.text_tokens import tokens
from evaluation.two_sample import linear_auc


def auc(*sides, **options):
    return linear_auc(*sides, **options)["linear_auc"]


def made(n, seed, verbs=("saw", "fed", "drew")):
    rng = random.Random(seed)
    names, animals = ("Ann", "Tom", "Eva"), ("dog", "cat", "fox", "hen")
    return [f"{rng.choice(names)} {rng.choice(verbs)} a {rng.choice(animals)} ." for _ in range(n)]


def test_texts_of_one_kind_cannot_be_told_apart_and_texts_of_another_can():
    assert auc(made(300, 0), made(300, 1)) == pytest.approx(0.5, abs=0.06)
    assert auc(made(300, 0, verbs=("ate",)), made(300, 1)) == 1


def test_pairs_of_words_and_case_count():
    swapped = [" ".join(reversed(text.split())) for text in made(200, 0)]
    assert auc(swapped, made(200, 1)) > 0.99  # the same words in another order
    assert auc([text.lower() for text in made(200, 0)], made(200, 1)) > 0.99


def test_pairs_share_a_fold():
    texts = [f"{i} {text}" for i, text in enumerate(made(60, 0))]
    assert auc(texts, texts, paired=True) == 0.5
    assert auc(texts, texts) < 0.3, "a copy is known by the words of its original, which is labeled real"
    assert auc([text.lower() for text in texts], texts, paired=True) > 0.95
    assert auc(made(300, 0), made(300, 1), paired=True) == pytest.approx(0.5, abs=0.06)


def test_texts_of_one_source_share_a_fold():
    """Two of each source, which share words that no other source has: across folds they would tell the label."""
    sources = [str(i // 2) for i in range(400)]
    texts = [f"{source} {text}" for source, text in zip(sources, made(400, 0), strict=True)]
    real = [f"{source} {text}" for source, text in zip(sources, made(400, 1), strict=True)]
    assert auc(texts, real, sources=sources) == pytest.approx(0.5, abs=0.06)
    assert auc(texts, texts, sources=sources) == 0.5
    assert math.isnan(auc(texts, real, sources=["one", "two"] * 200)), "fewer sources than folds"


def test_copies_of_few_texts_are_told_from_many():
    assert auc(made(5, 0) * 40, made(200, 1)) > 0.8


def test_it_equals_the_same_test_by_scikit_learn():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    samples, held_out = made(60, 0, verbs=("saw", "ate")), made(50, 1)
    texts, labels = samples[:50] + held_out, np.array([1] * 50 + [0] * 50)
    x = CountVectorizer(tokenizer=tokens, lowercase=False, token_pattern=None, ngram_range=(1, 2)).fit_transform(texts)
    scores = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, labels):
        model = LogisticRegression(solver="liblinear", random_state=0).fit(x[train], labels[train])
        scores.append(roc_auc_score(labels[test], model.decision_function(x[test])))
    assert auc(samples, held_out) == pytest.approx(np.mean(scores), abs=1e-9)


def test_it_is_deterministic_in_its_seed():
    sides = made(50, 0, verbs=("saw", "ate")), made(50, 1)
    assert auc(*sides) == auc(*sides) and auc(*sides, seed=1) != auc(*sides)


@pytest.mark.parametrize("n", [0, 1, 9])
def test_few_texts_give_no_number(n):
    assert math.isnan(auc(made(n, 0), made(100, 1)))


def test_empty_texts_and_texts_of_every_script():
    assert auc([""] * 20, made(20, 0)) == 1
    assert auc([""] * 20, [" "] * 20) == 0.5
    assert auc(["\u72d7\u5728\u8dd1"] * 20, ["\u732b\u5728\u7761"] * 20) == 1  # no blanks between words
    assert auc(["caf\u00e9"] * 20, ["cafe\u0301"] * 20) == 0.5  # one letter or two

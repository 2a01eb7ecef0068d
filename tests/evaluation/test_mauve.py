from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.mauve import mauve, mauve_of_features, num_buckets


def gaussian(n, shift=0.0, seed=0, width=8):
    return (np.random.default_rng(seed).normal(size=(n, width)) + shift).astype(np.float32)


def test_mauve_separates_similar_from_different_texts():
    assert mauve_of_features(gaussian(300), gaussian(300, seed=1)).score > 0.85
    assert mauve_of_features(gaussian(300, 4.0), gaussian(300, -4.0, seed=1)).score < 0.05


def test_mauve_equals_that_of_the_mauve_package():
    from mauve import compute_mauve

    p, q = gaussian(200), gaussian(200, 0.5, seed=1)
    theirs = compute_mauve(p_features=p, q_features=q, num_buckets="auto", mauve_scaling_factor=5, seed=25)
    ours = mauve_of_features(p, q)
    assert ours.score == pytest.approx(float(theirs.mauve))
    assert ours.buckets == theirs.num_buckets == 20


def test_mauve_is_deterministic_and_depends_on_its_seed():
    p, q = gaussian(150), gaussian(150, 0.3, seed=1)
    assert mauve_of_features(p, q).score == mauve_of_features(p, q).score
    other = mauve_of_features(p, q, seed=1)
    assert other.seed == 1 and other.score != mauve_of_features(p, q).score


def test_mauve_records_its_protocol():
    found = mauve_of_features(gaussian(150), gaussian(130, seed=1))
    assert found.protocol() == {
        "n": 130,
        "buckets": 13,
        "mauve_few_samples": True,
        "seed": 25,
        "scaling": 5.0,
        "max_length": 256,
    }
    assert not mauve_of_features(gaussian(1000), gaussian(1000, seed=1)).mauve_few_samples


def test_number_of_clusters_follows_the_number_of_texts():
    assert [num_buckets(n) for n in (0, 16, 100, 1000, 5000)] == [2, 2, 10, 100, 500]


def test_mauve_is_higher_for_texts_of_the_same_kind(scorer, stories):
    even, odd = stories[::2], stories[1::2]
    other = ["home home home"] * 20 + ["dog dog"] * 20
    assert mauve(even, odd, scorer).score > mauve(other, odd, scorer).score


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_mauve_of_few_texts_is_marked(scorer, stories, n):
    found = mauve(stories[:n], stories[40:], scorer)
    assert found.n == n and found.mauve_few_samples
    assert math.isnan(found.score) if n < 2 else 0 <= found.score <= 1


def test_empty_texts_lower_mauve(scorer, stories):
    assert 0 <= mauve([""] * 40, stories[:40], scorer).score < 0.5
    assert mauve([""] * 10, [""] * 10, scorer).score == 1
    mixed = mauve(stories[:20] + [""] * 20, stories[40:80], scorer)
    assert mixed.score < mauve(stories[:40], stories[40:80], scorer).score

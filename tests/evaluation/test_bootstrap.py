"""The paired bootstrap: an interval around the difference, narrow where examples agree, the same for the same seed."""

from __future__ import annotations

import random

import pytest

from evaluation import bootstrap


def test_a_constant_difference_has_no_spread():
    first = [random.Random(0).random() for _ in range(50)]
    low, high = bootstrap.paired_bootstrap_ci(first, [x + 0.25 for x in first])
    assert low == pytest.approx(0.25) and high == pytest.approx(0.25)


def test_the_interval_matches_the_normal_distribution():
    """The mean difference of 400 coin flips has a standard deviation of s / 20."""
    rng = random.Random(1)
    first, second = [rng.random() < 0.4 for _ in range(400)], [rng.random() < 0.6 for _ in range(400)]
    low, high = bootstrap.paired_bootstrap_ci(first, second, resamples=4000)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / 400
    deviation = (sum((d - mean) ** 2 for d in differences) / 400) ** 0.5 / 20
    assert low == pytest.approx(mean - 1.96 * deviation, abs=0.01)
    assert high == pytest.approx(mean + 1.96 * deviation, abs=0.01)
    assert (low, high) == bootstrap.paired_bootstrap_ci(first, second, resamples=4000)


def test_unpaired_scores_are_refused():
    for first, second in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="one of each per example"):
            bootstrap.paired_bootstrap_ci(first, second)

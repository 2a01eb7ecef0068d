"""Digests of splits: equal for equal content, and for nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_utils.digest import SplitDigest, count_missing, digest_split
from dataset_utils.splits import Split

NAMES = ("no", "yes")
cells = st.text("ab\0", max_size=3)
rows = st.lists(st.tuples(cells, cells, st.integers(0, 1)), min_size=1, max_size=5)
columns = st.sampled_from(["texts", "pairs", "classes", "both"])


def split_of(rows, kind: str) -> Split:
    texts, sources, labels = (list(column) for column in zip(*rows, strict=True))
    return Split(texts, labels if kind in ("classes", "both") else None, sources if kind in ("pairs", "both") else None)


@given(rows, rows, columns, columns)
def test_a_digest_changes_if_and_only_if_the_content_does(these, those, kind, other) -> None:
    first, second = split_of(these, kind), split_of(those, other)
    assert (digest_split(first, NAMES) == digest_split(second, NAMES)) == (first == second)
    copied = split_of(list(these), kind)
    assert digest_split(copied, NAMES) == digest_split(first, NAMES)
    assert SplitDigest.from_dict(digest_split(first, NAMES).as_dict()) == digest_split(first, NAMES)


def test_labels_count_by_their_names() -> None:
    assert digest_split(Split(["a"], [0]), ("no", "yes")) == digest_split(Split(["a"], [1]), ("yes", "no"))
    assert digest_split(Split(["a"], [0]), ("no", "yes")) != digest_split(Split(["a"], [0]), ("nein", "ja"))


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {},
        {"num_texts": 1},
        {"num_texts": "1", "texts": "", "sources": None, "labels": None},
        {"num_texts": 1, "texts": 5, "sources": None, "labels": None},
    ],
)
def test_what_is_no_digest_is_refused(damaged) -> None:
    with pytest.raises(ValueError, match="no digest"):
        SplitDigest.from_dict(damaged)


@given(*[st.lists(st.integers(-5, 5), max_size=20)] * 2)
def test_missing_texts_are_counted_with_their_multiplicity(these, those) -> None:
    missing = count_missing(np.array(these, np.int64), np.array(those, np.int64))
    assert missing == (Counter(these) - Counter(those)).total()

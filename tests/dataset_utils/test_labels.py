"""Labels have one canonical spelling, whatever type and format they come from."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_utils.labels import canonical_label, sort_labels, spells_no_value

SCALARS = st.one_of(
    st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda s: s.strip()),
)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((1, 1.0, "1", "1.0", " 1 ", "1.00", np.int64(1), np.float32(1), Decimal("1.0"), 1e0), "1"),
        ((0, 0.0, -0.0, "0", "-0", "-0.0", np.uint8(0)), "0"),
        ((True, "true", "True", "TRUE", np.True_, " true"), "true"),
        ((False, "false", "False", np.False_), "false"),
        ((0.5, "0.5", "0.50", Decimal("0.500")), "0.5"),
        ((1e22, "1e+22", "1E+22", 10**22, "1" + "0" * 22), "1" + "0" * 22),
        ((1e-7, "1e-07", "0.0000001"), "0.0000001"),
        (("caf\u00e9", "cafe\u0301", "caf\u00e9\u00a0"), "caf\u00e9"),
        (("sci tech", " sci tech\n", np.str_("sci tech")), "sci tech"),
        (("9" * 4301, "9" * 4301 + ".0"), "9" * 4301),
    ],
)
def test_equal_labels_have_one_name(values, name: str) -> None:
    assert [canonical_label(value) for value in values] == [name] * len(values)


@pytest.mark.parametrize("name", ["007", "+1", "1e3", "1.", ".5", "1,0", "yes", "Mixed Case", "nan", "None", "1_000"])
def test_names_that_only_resemble_numbers_are_kept(name: str) -> None:
    assert canonical_label(name) == name


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null is no label"), (float("nan"), "nan is no label"), (float("-inf"), "inf is no label"),
        (np.float64("nan"), "nan is no label"), (Decimal("NaN"), "NaN is no label"), ("", "a blank"),
        (" \u3000\n", "a blank"),
        ([1], "a list"), ((1,), "a list"), ({}, "an object"), (b"1", "type bytes"), (np.array([1]), "type ndarray"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_the_reason(value, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        canonical_label(value)


@given(SCALARS)
def test_a_label_reads_the_same_from_json_from_a_table_and_from_its_own_name(value) -> None:
    name = canonical_label(value)
    assert canonical_label(name) == name == name.strip()
    assert canonical_label(json.loads(json.dumps(value))) == name
    cells = io.StringIO(newline="")
    csv.writer(cells).writerow([value, "x"])
    (row,) = csv.reader(io.StringIO(cells.getvalue(), newline=""))
    assert canonical_label(row[0]) == name


def test_labels_are_sorted_by_value_if_all_are_numbers() -> None:
    assert sort_labels(["10", "9", "-1", "0.5", "9"]) == ("-1", "0.5", "9", "10")
    assert sort_labels(["10", "9", "b", "a"]) == ("10", "9", "a", "b")
    assert sort_labels(["9" * 4301, "1"]) == ("1", "9" * 4301)
    assert sort_labels([]) == ()


def test_a_spelled_missing_value_among_numbers_is_no_name() -> None:
    assert spells_no_value("NaN", ["0", "1", "NaN"]) and spells_no_value("None", ["true", "false"])
    assert not spells_no_value("none", ["joy", "anger"]) and not spells_no_value("nan", ["nan"])
    assert not spells_no_value("0", ["0", "1"])

"""Class labels of a file -> class indices.

This module does not depend on file formats or on the corpora of the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from dataset_utils.columns import NO_COLUMN
from dataset_utils.labels import canonical_label, is_number, sort_labels
from dataset_utils.raw_split import RawSplit
from dataset_utils.splits import Split
from utils.errors import UserError

_MAX_CLASSES = 100  # a column with more values, and more than a tenth of the rows, does not hold classes


def parse_class_label(value: Any, names: Sequence[str]) -> int:
    """Class index of a label in a corpus of the catalog: the index itself, or a class name. Otherwise ValueError."""
    text = canonical_label(value)
    if text in names:
        return list(names).index(text)
    number = float(text)
    if not (number.is_integer() and 0 <= number < len(names)):
        raise ValueError
    return int(number)


def lookup_label(value: Any, names: Sequence[str]) -> int:
    """Class index of a label in the user's own corpus: a value of the training split. Otherwise ValueError."""
    return list(names).index(canonical_label(value))


def binarize(value: Any, names: Sequence[str]) -> int:
    """Class of a score in [0, 1] (Stanford Sentiment Treebank): 1 from 0.5 up. ValueError for other values."""
    score = float(value)
    if not 0 <= score <= 1:
        raise ValueError
    return int(score >= 0.5)


def find_classes(labels: Sequence[Any], where: str, column: str | None) -> tuple[str, ...]:
    """Class names of a corpus without a row in the catalog: its labels, sorted; numbers by value.

    Raises UserError if there are too many values to be classes.
    """
    values = {canonical_label(label) for label in set(labels) - {None, ""}}
    if len(values) > max(_MAX_CLASSES, len(labels) // 10):
        raise UserError(
            f"{where}: column {column!r} has {len(values):,} different values in {len(labels):,} rows, too many "
            f"to be classes: name another with --label_column, or pass --label_column {NO_COLUMN}"
        )
    return sort_labels(values)


def to_split(
    split: RawSplit, names: Sequence[str], label_to_index: Callable[[Any, Sequence[str]], int] = parse_class_label
) -> Split:
    """Convert labels to class indices. names: names of the classes. UserError, with the line, for an unknown label."""
    if split.labels is None:
        return Split(split.texts, None, split.sources, split.has_texts)
    index_of: dict[str, int] = {}
    for label in set(split.labels):
        with suppress(TypeError, ValueError):  # named below, with its line
            index_of[label] = label_to_index(label, names)
    for line, label in zip(split.lines, split.labels, strict=True):
        if label not in index_of:
            allowed = "a number in [0, 1]" if label_to_index is binarize else f"one of the classes {_few(names)}"
            shown = label if is_number(label) else repr(label)
            raise UserError(f"{split.where}, line {line}: label {shown} is not {allowed}: correct the line")
    return Split(split.texts, [index_of[label] for label in split.labels], split.sources, split.has_texts)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"

"""Rows -> a split: which column is the text, which the label, which the source, and what a label's value means.

Knows no file format and no corpus by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_utils.corpus import Split
from dataset_utils.readers import Row
from utils.errors import UserError

# Where the user names no column: the first of these that is there.
TEXT_NAMES = ("text", "trg", "target", "sentence", "summary", "story", "content")
SOURCE_NAMES = ("src", "source", "context", "document")
LABEL_NAMES = ("label", "labels", "class", "class_id")


@dataclass(frozen=True)
class Columns:
    """Names of columns. A name in `source` or `label` must be there; None looks for the usual names if `guess`."""

    text: str | None = None
    source: str | None = None
    label: str | None = None
    guess: bool = False


@dataclass
class RawSplit:
    """A split whose labels are still what the file says, with where each row stood."""

    where: str  # the file
    texts: list[str] = field(default_factory=list)
    labels: list[Any] | None = None
    sources: list[str] | None = None
    lines: list[int] = field(default_factory=list)
    empty: int = 0  # rows left out because their text was blank
    columns: Columns = Columns()  # where text, source and label were found

    def __len__(self) -> int:
        return len(self.texts)


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(name.lower(), {n.lower(): n for n in names}, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _find(
    wanted: str | None, usual: Sequence[str], row: Mapping[str, Any], flag: str, where: str, guess: bool
) -> str | None:
    if wanted is not None:
        if wanted not in row:
            raise UserError(
                f"{where}: there is no column {wanted!r}{nearest(wanted, row)}, only {', '.join(row)}: "
                f"pass {flag} with one of them"
            )
        return wanted
    return next((name for name in usual if name in row), None) if guess else None


def assemble(rows: Iterable[Row], columns: Columns, where: str, clean: Callable[[str], str] | None = None) -> RawSplit:
    """Take text, source and label out of rows. `clean` is applied to texts and sources, blanks at the ends go.

    where: the file, for messages. Rows whose text is blank are left out and counted. Errors: UserError, with the line,
    for a missing column, a value that is not text, and for no text at all.
    """
    split = RawSplit(where)
    chosen: Columns | None = None
    for line, row in rows:
        if chosen is None:
            chosen = split.columns = _choose(columns, row, where)
            split.labels = [] if chosen.label else None
            split.sources = [] if chosen.source else None
        assert chosen.text is not None
        text = _text(row, chosen.text, where, line, clean)
        if not text:
            split.empty += 1
            continue
        split.texts.append(text)
        split.lines.append(line)
        if split.sources is not None and chosen.source:
            split.sources.append(_text(row, chosen.source, where, line, clean))
        if split.labels is not None and chosen.label:
            split.labels.append(_cell(row, chosen.label, where, line))
    if not split.texts:
        raise UserError(f"{where} holds no texts: check that it is the right file")
    return split


def _choose(columns: Columns, row: Mapping[str, Any], where: str) -> Columns:
    text = _find(columns.text, TEXT_NAMES, row, "--text_column", where, columns.guess)
    if text is None and len(row) == 1:
        text = next(iter(row))
    if text is None:
        raise UserError(f"{where}: which of its columns ({', '.join(row)}) is the text? pass --text_column")
    source = _find(columns.source, [n for n in SOURCE_NAMES if n != text], row, "--source_column", where, columns.guess)
    label = _find(columns.label, LABEL_NAMES, row, "--label_column", where, columns.guess)
    return Columns(text, source, label)


def _cell(row: Mapping[str, Any], column: str, where: str, line: int) -> Any:
    if column not in row:
        raise UserError(
            f"{where}, line {line}: no column {column!r}, only {', '.join(row) or 'an empty object'}: "
            "mend or remove the line"
        )
    return row[column]


def _text(row: Mapping[str, Any], column: str, where: str, line: int, clean: Callable[[str], str] | None) -> str:
    value = _cell(row, column, where, line)
    if not isinstance(value, str):
        raise UserError(
            f"{where}, line {line}: column {column!r} should be text, found {type(value).__name__} "
            f"{str(value)[:40]!r}: mend or remove the line, or name another column"
        )
    return (clean(value) if clean else value).strip()


# ------------------------------------------------------------------------------------------------ labels


def class_number(value: Any, names: Sequence[str]) -> int:
    """A label of a known corpus: the number of its class already, or its name. ValueError otherwise."""
    text = str(value).strip()
    if text in names:
        return list(names).index(text)
    number = float(text)
    if not (number.is_integer() and 0 <= number < len(names)):
        raise ValueError
    return int(number)


def class_name(value: Any, names: Sequence[str]) -> int:
    """A label of the user's own corpus: one of the values that the training split has. ValueError otherwise."""
    return list(names).index(str(value).strip())


def half(value: Any, names: Sequence[str]) -> int:
    """A score in [0, 1] as one of two classes: 1 from 0.5 up (the Stanford Sentiment Treebank)."""
    score = float(value)
    if not 0 <= score <= 1:
        raise ValueError
    return int(score >= 0.5)


def find_classes(labels: Sequence[Any]) -> tuple[str, ...]:
    """The different labels of an unknown corpus in order, whole numbers by size: class c is the c-th of them."""
    values = {str(label).strip() for label in labels}
    return tuple(sorted(values, key=int if all(value.isdecimal() for value in values) else None))


def finish(split: RawSplit, names: Sequence[str], number: Callable[[Any, Sequence[str]], int] = class_number) -> Split:
    """The split with its labels as numbers. Errors: UserError with file and line for a label of no class."""
    if split.labels is None:
        return Split(split.texts, None, split.sources)
    numbers: list[int] = []
    for line, label in zip(split.lines, split.labels, strict=True):
        try:
            numbers.append(number(label, names))
        except (TypeError, ValueError):
            allowed = "a number in [0, 1]" if number is half else f"one of the classes {', '.join(names)}"
            raise UserError(f"{split.where}, line {line}: label {label!r} is not {allowed}: mend the line") from None
    return Split(split.texts, numbers, split.sources)

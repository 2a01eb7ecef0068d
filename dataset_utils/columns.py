"""Rows of a file -> a split: find the columns of text, label and source, and turn labels into class indices.

This module does not depend on file formats or on the corpora of the catalog.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_utils.readers import Row
from dataset_utils.splits import Split
from utils.errors import UserError, did_you_mean

# Where no column is named on the command line: the first of these pairs (source, text) that the file has ...
PAIRS = (
    ("src", "trg"), ("src", "tgt"), ("source", "target"), ("src", "target"), ("source", "text"), ("context", "text"),
    ("document", "summary"), ("article", "highlights"), ("article", "summary"), ("dialogue", "summary"),
    ("text", "summary"), ("context", "response"), ("prompt", "response"), ("prompt", "completion"),
    ("post", "response"), ("input", "output"), ("input", "target"), ("normal", "simple"), ("complex", "simple"),
    ("meaning_representation", "human_reference"), ("mr", "ref"),
)  # fmt: skip
# ... else the first of these that the file has.
TEXT_NAMES = ("text", "sentence", "story", "content", "review", "summary", "target", "trg")
LABEL_NAMES = ("label", "labels", "class", "class_id", "category", "sentiment")
KNOWN_NAMES = frozenset((*TEXT_NAMES, *LABEL_NAMES, *(name for pair in PAIRS for name in pair)))
NO_COLUMN = "none"  # value of a column flag: do not use such a column
_MAX_CLASSES = 100  # a column with more values, and more than a tenth of the rows, does not hold classes


@dataclass(frozen=True)
class Columns:
    """Names of columns. A given name must exist in the file. None: find one by its usual name if `guess`."""

    text: str | None = None
    source: str | None = None
    label: str | None = None
    guess: bool = False


@dataclass
class RawSplit:
    """A split whose labels are still the values in the file, with the line number of each row."""

    where: str  # name of the file, for messages
    texts: list[str] = field(default_factory=list)
    labels: list[Any] | None = None
    sources: list[str] | None = None
    lines: array = field(default_factory=lambda: array("q"))
    num_blank: int = 0  # rows that were dropped because their text was blank
    incomplete: list[int] = field(default_factory=list)  # lines that were dropped: a source without text, or vice versa
    columns: Columns = Columns()  # columns of text, source and label in this file

    def __len__(self) -> int:
        return len(self.texts)

    def notes(self) -> list[str]:
        """One line for each kind of rows that were dropped."""
        notes = [f"{self.num_blank:,} blank rows of {self.where} were dropped"] if self.num_blank else []
        if self.incomplete:
            c = self.columns
            notes.append(
                f"{len(self.incomplete):,} rows of {self.where} were dropped: a source ({c.source}) without text "
                f"({c.text}), or vice versa; the first is line {self.incomplete[0]}"
            )
        return notes


def collect_rows(
    rows: Iterable[Row], columns: Columns, where: str, clean: Callable[[str], str] | None = None
) -> RawSplit:
    """Collect text, source and label of rows. `clean` is applied to texts and sources, which are then stripped.

    where: name of the file, for messages. Rows whose text or source is blank are dropped and counted. Errors:
    UserError, with the line, for a missing column or a value that is not text; UserError for a file without texts.
    """
    split = RawSplit(where)
    found: Columns | None = None
    for line, row in rows:
        if found is None:
            found = split.columns = resolve_columns(columns, row, where)
            split.labels = [] if found.label else None
            split.sources = [] if found.source else None
        assert found.text is not None
        text = _text(row, found.text, where, line, clean)
        if split.sources is not None and found.source:
            source = _text(row, found.source, where, line, clean)
            if bool(source) != bool(text):
                split.incomplete.append(line)
                continue
            if text:
                split.sources.append(source)
        if not text:
            split.num_blank += 1
            continue
        split.texts.append(text)
        split.lines.append(line)
        if split.labels is not None and found.label:
            split.labels.append(_cell(row, found.label, where, line))
    if split.incomplete and not split.texts:
        raise UserError(f"{split.notes()[-1]}: no row is complete, so name --source_column and --text_column")
    if not split.texts:
        raise UserError(f"{where} holds no texts: check that it is the right file")
    return split


def resolve_columns(columns: Columns, row: Mapping[str, Any], where: str) -> Columns:
    """The columns of text, source and label in a file with rows like `row`. Names are compared ignoring case."""
    there = {name.lower(): name for name in row}

    def existing(name: str | None, flag: str) -> str | None:
        if name is None or name in row or name.lower() == NO_COLUMN:
            return name
        if name.lower() in there:
            return there[name.lower()]
        raise UserError(
            f"{where}: there is no column {name!r}{did_you_mean(name, row)}, only {', '.join(map(str, row))}: "
            f"pass {flag} with one of them"
        )

    text = existing(columns.text, "--text_column")
    source = existing(columns.source, "--source_column")
    label = existing(columns.label, "--label_column")
    if columns.guess:
        pair = next((p for p in PAIRS if _fits(p, there, source, text)), (None, None))
        free = [name for name in TEXT_NAMES if name in there and there[name] not in (source, label)]
        source = source or (there[pair[0]] if pair[0] else None)
        text = text or (there[pair[1]] if pair[1] else next((there[name] for name in free), None))
        label = label or next((there[n] for n in LABEL_NAMES if n in there and there[n] not in (source, text)), None)
    if text is None and len(row) == 1:
        text = next(iter(row))
    if text is None or text.lower() == NO_COLUMN:
        raise UserError(
            f"{where}: which of its columns ({', '.join(map(str, row))}) holds the text? Name it with --text_column"
        )
    return Columns(text, _unless_none(source), _unless_none(label))


def _unless_none(name: str | None) -> str | None:
    return None if name is None or name.lower() == NO_COLUMN else name


def _fits(pair: tuple[str, str], there: Mapping[str, str], source: str | None, text: str | None) -> bool:
    """Whether the file has this usual pair of names and the pair agrees with the columns that were named."""
    if not (pair[0] in there and pair[1] in there) or source == NO_COLUMN:
        return False
    return source in (None, there[pair[0]]) and text in (None, there[pair[1]])


def _cell(row: Mapping[str, Any], column: str, where: str, line: int) -> Any:
    if column not in row:
        raise UserError(
            f"{where}, line {line}: no column {column!r}, only {', '.join(row) or 'an empty object'}: "
            "correct or remove the line"
        )
    return row[column]


def _text(row: Mapping[str, Any], column: str, where: str, line: int, clean: Callable[[str], str] | None) -> str:
    value = _cell(row, column, where, line)
    if value is None:  # null in parquet or JSON: a blank cell
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{where}, line {line}: column {column!r} should be text, found {type(value).__name__} "
            f"{str(value)[:40]!r}: mend or remove the line, or name another column"
        )
    return (clean(value) if clean else value).strip()


# ------------------------------------------------------------------------------------------------ labels


def parse_class_label(value: Any, names: Sequence[str]) -> int:
    """Class index of a label in a corpus of the catalog: the index itself, or a class name. Otherwise ValueError."""
    text = str(value).strip()
    if text in names:
        return list(names).index(text)
    number = float(text)
    if not (number.is_integer() and 0 <= number < len(names)):
        raise ValueError
    return int(number)


def lookup_label(value: Any, names: Sequence[str]) -> int:
    """Class index of a label in the user's own corpus: a value of the training split. Otherwise ValueError."""
    return list(names).index(str(value).strip())


def binarize(value: Any, names: Sequence[str]) -> int:
    """Class of a score in [0, 1] (Stanford Sentiment Treebank): 1 from 0.5 up. ValueError for other values."""
    score = float(value)
    if not 0 <= score <= 1:
        raise ValueError
    return int(score >= 0.5)


def find_classes(labels: Sequence[Any], where: str, column: str | None) -> tuple[str, ...]:
    """Class names of a corpus without a row in the catalog: its label values, sorted; whole numbers by value.

    Raises UserError if there are too many values to be classes.
    """
    values = {str(label).strip() for label in labels if label is not None} - {""}
    if len(values) > max(_MAX_CLASSES, len(labels) // 10):
        raise UserError(
            f"{where}: column {column!r} has {len(values):,} different values in {len(labels):,} rows, too many "
            f"to be classes: name another with --label_column, or pass --label_column {NO_COLUMN}"
        )
    return tuple(sorted(values, key=int if all(value.isdecimal() for value in values) else None))


def to_split(
    split: RawSplit, names: Sequence[str], label_to_index: Callable[[Any, Sequence[str]], int] = parse_class_label
) -> Split:
    """Convert labels to class indices. names: names of the classes. UserError, with the line, for an unknown label."""
    if split.labels is None:
        return Split(split.texts, None, split.sources)
    indices: list[int] = []
    for line, label in zip(split.lines, split.labels, strict=True):
        try:
            indices.append(label_to_index(label, names))
        except (TypeError, ValueError):
            allowed = "a number in [0, 1]" if label_to_index is binarize else f"one of the classes {_few(names)}"
            raise UserError(f"{split.where}, line {line}: label {label!r} is not {allowed}: correct the line") from None
    return Split(split.texts, indices, split.sources)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"

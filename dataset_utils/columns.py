"""Rows -> a split: which column is the text, which the label, which the source, and what a label's value means.

Knows no file format and no corpus by name.
"""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataset_utils.readers import Row
from dataset_utils.splits import Split
from utils.errors import UserError

# Where the user names no column: the first of these pairs (source, text) that is there as a whole ...
PAIRS = (
    ("src", "trg"), ("src", "tgt"), ("source", "target"), ("src", "target"), ("source", "text"), ("context", "text"),
    ("document", "summary"), ("article", "highlights"), ("article", "summary"), ("dialogue", "summary"),
    ("text", "summary"), ("context", "response"), ("prompt", "response"), ("prompt", "completion"),
    ("post", "response"), ("input", "output"), ("input", "target"), ("normal", "simple"), ("complex", "simple"),
    ("meaning_representation", "human_reference"), ("mr", "ref"),
)  # fmt: skip
# ... else the first of these.
TEXT_NAMES = ("text", "sentence", "story", "content", "review", "summary", "target", "trg")
LABEL_NAMES = ("label", "labels", "class", "class_id", "category", "sentiment")
KNOWN_NAMES = frozenset((*TEXT_NAMES, *LABEL_NAMES, *(name for pair in PAIRS for name in pair)))
NO_COLUMN = "none"  # typed for a column that is there and is not to be used
_MOST_CLASSES = 100  # more, and more than a tenth of the rows: then the column holds something else


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
    lines: array = field(default_factory=lambda: array("q"))
    empty: int = 0  # rows left out because their text was blank
    halves: list[int] = field(default_factory=list)  # lines left out because only source or only text was there
    columns: Columns = Columns()  # where text, source and label were found

    def __len__(self) -> int:
        return len(self.texts)

    def notes(self) -> list[str]:
        """What was left out, in a line each."""
        said = [f"{self.empty:,} blank rows of {self.where} left out"] if self.empty else []
        if self.halves:
            c = self.columns
            said.append(
                f"{len(self.halves):,} rows of {self.where} left out: a source ({c.source}) without target ({c.text}), "
                f"or the other way round; the first is line {self.halves[0]}"
            )
        return said


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(name.lower(), {n.lower(): n for n in names}, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def assemble(rows: Iterable[Row], columns: Columns, where: str, clean: Callable[[str], str] | None = None) -> RawSplit:
    """Take text, source and label out of rows. `clean` is applied to texts and sources, blanks at the ends go.

    where: the file, for messages. Rows whose text or source is blank are left out and counted. Errors: UserError, with
    the line, for a missing column, a value that is not text, and for no text at all.
    """
    split = RawSplit(where)
    chosen: Columns | None = None
    for line, row in rows:
        if chosen is None:
            chosen = split.columns = choose(columns, row, where)
            split.labels = [] if chosen.label else None
            split.sources = [] if chosen.source else None
        assert chosen.text is not None
        text = _text(row, chosen.text, where, line, clean)
        if split.sources is not None and chosen.source:
            source = _text(row, chosen.source, where, line, clean)
            if bool(source) != bool(text):
                split.halves.append(line)
                continue
            if text:
                split.sources.append(source)
        if not text:
            split.empty += 1
            continue
        split.texts.append(text)
        split.lines.append(line)
        if split.labels is not None and chosen.label:
            split.labels.append(_cell(row, chosen.label, where, line))
    if split.halves and not split.texts:
        raise UserError(f"{split.notes()[-1]}: no row is whole, so name --source_column and --text_column")
    if not split.texts:
        raise UserError(f"{where} holds no texts: check that it is the right file")
    return split


def choose(columns: Columns, row: Mapping[str, Any], where: str) -> Columns:
    """The columns of text, source and label in a row of these columns. Names are compared without regard to case."""
    there = {name.lower(): name for name in row}

    def typed(name: str | None, flag: str) -> str | None:
        if name is None or name in row or name.lower() == NO_COLUMN:
            return name
        if name.lower() in there:
            return there[name.lower()]
        raise UserError(
            f"{where}: there is no column {name!r}{nearest(name, row)}, only {', '.join(map(str, row))}: "
            f"pass {flag} with one of them"
        )

    text = typed(columns.text, "--text_column")
    source = typed(columns.source, "--source_column")
    label = typed(columns.label, "--label_column")
    if columns.guess:
        pair = next((p for p in PAIRS if _fits(p, there, source, text)), (None, None))
        free = [name for name in TEXT_NAMES if name in there and there[name] not in (source, label)]
        source = source or (there[pair[0]] if pair[0] else None)
        text = text or (there[pair[1]] if pair[1] else next((there[name] for name in free), None))
        label = label or next((there[n] for n in LABEL_NAMES if n in there and there[n] not in (source, text)), None)
    if text is None and len(row) == 1:
        text = next(iter(row))
    if text is None or text.lower() == NO_COLUMN:
        raise UserError(f"{where}: which of its columns ({', '.join(map(str, row))}) is the text? pass --text_column")
    return Columns(text, _unless_none(source), _unless_none(label))


def _unless_none(name: str | None) -> str | None:
    return None if name is None or name.lower() == NO_COLUMN else name


def _fits(pair: tuple[str, str], there: Mapping[str, str], source: str | None, text: str | None) -> bool:
    """Whether a usual pair of names is there, beside what was typed."""
    if not (pair[0] in there and pair[1] in there) or source == NO_COLUMN:
        return False
    return source in (None, there[pair[0]]) and text in (None, there[pair[1]])


def _cell(row: Mapping[str, Any], column: str, where: str, line: int) -> Any:
    if column not in row:
        raise UserError(
            f"{where}, line {line}: no column {column!r}, only {', '.join(row) or 'an empty object'}: "
            "mend or remove the line"
        )
    return row[column]


def _text(row: Mapping[str, Any], column: str, where: str, line: int, clean: Callable[[str], str] | None) -> str:
    value = _cell(row, column, where, line)
    if value is None:  # a null of parquet or JSON: a blank cell
        return ""
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


def find_classes(labels: Sequence[Any], where: str, column: str | None) -> tuple[str, ...]:
    """The different labels of an unknown corpus in order, whole numbers by size: class c is the c-th of them.

    Errors: UserError where there are so many that they cannot be classes.
    """
    values = {str(label).strip() for label in labels if label is not None} - {""}
    if len(values) > max(_MOST_CLASSES, len(labels) // 10):
        raise UserError(
            f"{where}: column {column!r} has {len(values):,} different values in {len(labels):,} rows, which are no "
            f"classes: name another with --label_column, or pass --label_column {NO_COLUMN}"
        )
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
            allowed = "a number in [0, 1]" if number is half else f"one of the classes {_few(names)}"
            raise UserError(f"{split.where}, line {line}: label {label!r} is not {allowed}: mend the line") from None
    return Split(split.texts, numbers, split.sources)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"

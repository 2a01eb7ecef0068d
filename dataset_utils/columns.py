"""Rows of a file -> a split: find the columns of text, label and source, and turn labels into class indices.

All rows decide which columns a file has: no first row speaks for the others. This module does not depend on file
formats or on the corpora of the catalog.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dataset_utils.characters import is_clean, mend
from dataset_utils.labels import canonical_label, is_number, sort_labels, spells_no_value
from dataset_utils.rows import NestedRow, Row, Tally, UniformRows
from dataset_utils.splits import Split
from utils.errors import UserError, did_you_mean

# Where no column is named on the command line: the first of these pairs (source, text) that the file has ...
# "a+b" are two columns that are joined with a blank.
PAIRS = (
    ("instruction+input", "output"), ("instruction+input", "response"), ("instruction+context", "response"),
    ("system+prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("src", "trg"), ("src", "tgt"), ("source", "target"), ("src", "target"), ("source", "text"), ("context", "text"),
    ("document", "summary"), ("article", "highlights"), ("article", "summary"), ("dialogue", "summary"),
    ("text", "summary"), ("context", "response"), ("prompt", "response"), ("prompt", "completion"),
    ("post", "response"), ("input", "output"), ("input", "target"), ("normal", "simple"), ("complex", "simple"),
    ("meaning_representation", "human_reference"), ("mr", "ref"),
)  # fmt: skip
# ... else the first of these that the file has.
TEXT_NAMES = ("text", "sentence", "story", "content", "review", "summary", "target", "trg")
LABEL_NAMES = ("label", "labels", "class", "class_id", "category", "sentiment")
KNOWN_NAMES = frozenset(
    (*TEXT_NAMES, *LABEL_NAMES, *(name for pair in PAIRS for side in pair for name in side.split("+")))
)
NO_COLUMN = "none"  # value of a column flag: do not use such a column
_FEW_ROWS, _FEW_SOURCES = 50, 20  # so few different sources in so many rows hardly are texts
_MAX_CLASSES = 100  # a column with more values, and more than a tenth of the rows, does not hold classes


@dataclass(frozen=True)
class Columns:
    """Names of columns. A given name must exist in the file. None: find one by its usual name if `guess`.

    "a+b" names two columns that are joined with a blank, "a.b" the key b of the inner object a.
    """

    text: str | None = None
    source: str | None = None
    label: str | None = None
    guess: bool = False

    def names(self) -> tuple[str, ...]:
        """All columns that are named, those that are joined one by one."""
        given = [name for name in (self.text, self.source, self.label) if name and name.lower() != NO_COLUMN]
        return tuple(dict.fromkeys((*given, *(part for name in given for part in name.split("+")))))


@dataclass
class RawSplit:
    """A split whose labels are still names (see `labels`), with the line number of each row."""

    where: str  # name of the file, for messages
    texts: list[str] = field(default_factory=list)
    labels: list[str] | None = None
    sources: list[str] | None = None
    lines: array = field(default_factory=lambda: array("q"))
    num_blank: int = 0  # rows that were dropped because their text was blank
    incomplete: list[int] = field(default_factory=list)  # lines that were dropped: a source without text, or vice versa
    columns: Columns = Columns()  # columns of text, source and label in this file
    names: tuple[str, ...] = ()  # all columns of the file
    of_lines: Tally = field(default_factory=Tally)  # what the reader noticed
    of_texts: Tally = field(default_factory=Tally)  # characters that are no text

    def __len__(self) -> int:
        return len(self.texts)

    def notes(self) -> list[str]:
        """One line for each kind of rows that were dropped, and for each kind of text that was changed."""
        notes = [f"{self.num_blank:,} blank rows of {self.where} were dropped"] if self.num_blank else []
        if self.incomplete:
            c = self.columns
            notes.append(
                f"{len(self.incomplete):,} rows of {self.where} were dropped: a source ({c.source}) without text "
                f"({c.text}), or vice versa; the first is line {self.incomplete[0]}"
            )
        notes += self.of_lines.notes("line", self.where)
        return notes + self.of_texts.notes("text", self.where, len(self.texts))


def collect_rows(
    rows: Iterable[Row], columns: Columns, where: str, clean: Callable[[str], str] | None = None
) -> RawSplit:
    """Collect text, source and label of rows. `clean` is applied to texts and sources, which are then stripped.

    where: name of the file, for messages. Rows whose text or source is blank are dropped and counted. Errors:
    UserError, with the line, for a missing column or a value that is not text or no label; UserError for a file
    without texts.
    """
    split = RawSplit(where)
    if isinstance(tally := getattr(rows, "tally", None), Tally):
        split.of_lines = tally
    iterator, uniform = iter(rows), isinstance(rows, UniformRows)
    resolver: _Resolver | None = None
    keys: Any = None
    names: dict[Any, str] = {}  # value of a label -> its name
    sources: tuple[str, ...] = ()
    for line, row in iterator:
        if resolver is None or not uniform and row.keys() != keys:
            keys = row.keys()
            if resolver is None:
                resolver = _Resolver(columns, where, line, row, iterator)
                found, texts = resolver.found, _parts(row, resolver.found.text)
                split.columns = found
                if found.source:
                    split.sources, sources = [], _parts(row, found.source)
                if found.label:
                    split.labels = []
            else:
                resolver.check(line, row)
        if split.sources is None:
            value, number = row.get(texts[0]), 1
            if len(texts) == 1 and isinstance(value, str) and is_clean(value):  # nearly always; written out for speed
                text = (clean(value) if clean else value).strip()
            else:
                text = _text(row, texts, split, line, clean)
            if not text:
                split.num_blank += 1
                continue
            split.texts.append(text)
            split.lines.append(line)
        else:
            references, source = _references(row, texts, split, line, clean), _text(row, sources, split, line, clean)
            number = len(references)
            if not (references and source):
                if references or source:
                    split.incomplete.append(line)
                else:
                    split.num_blank += 1
                continue
            split.texts += references
            split.sources += [source] * number
            split.lines.extend([line] * number)
        if split.labels is not None and found.label:
            value = row[found.label] if found.label in row else _cell(row, found.label, where, line, "--label_column")
            key = value if value.__class__ is str else (value.__class__, str(value))
            if key not in names:
                names[key] = _label(value, split, line)
            split.labels += [names[key]] * number
    if resolver is not None:
        split.columns, split.names = resolver.found, tuple(resolver.names)
    if split.incomplete and not split.texts:
        raise UserError(f"{split.notes()[-1]}: no row is complete, so name --source_column and --text_column")
    if not split.texts:
        blank = f": column {split.columns.text!r} is blank in all {split.num_blank:,} rows" if split.num_blank else ""
        raise UserError(f"{where} holds no texts{blank}: check that it is the right file")
    _check_spelled_labels(split)
    if columns.guess:
        _check_guess(split, columns)
    return split


def _check_guess(split: RawSplit, columns: Columns) -> None:
    """UserError if the values of all rows speak against a column that was found by its name."""
    found = split.columns
    unused = [name for name in split.names if name not in found.names()]
    if columns.text is None and unused and all(is_number(text) for text in split.texts):
        raise UserError(
            f"{split.where}: column {found.text!r}, taken for the text, holds only numbers: name the text with "
            f"--text_column ({found.text}, {', '.join(unused)})"
        )
    provenance = columns.source is None and (found.source or "").lower() == "source"  # the name has two meanings
    if provenance and split.sources is not None and len(split) >= _FEW_ROWS:
        different = len(set(split.sources))
        if different <= min(_FEW_SOURCES, len(split) // 10):
            raise UserError(
                f"{split.where}: column {found.source!r}, taken for the source of each text, has {different} different "
                f"values in {len(split):,} rows: if it says where a text is from, pass --source_column {NO_COLUMN}; if "
                f"texts are to be written from it, --source_column {found.source}"
            )


class _Resolver:
    """The columns of a file, decided by all of its rows: rows may have different names."""

    def __init__(self, columns: Columns, where: str, line: int, row: Mapping[str, Any], rest: Iterator[Row]) -> None:
        self.columns, self.where, self.line = columns, where, line
        self.names = _union({}, row)
        try:
            self.found = resolve_columns(columns, self.names, where)
        except UserError:
            names = self.names
            for _, other in rest:  # a column that the first row lacks may be in others
                if other.keys() - names.keys():
                    names = _union(names, other)
            self._refuse(resolve_columns(columns, names, where), row, "other rows have")
            raise

    def check(self, line: int, row: Mapping[str, Any]) -> None:
        """UserError if a row with other names shows that earlier rows lack a column."""
        if not row.keys() - self.names.keys():
            return
        before, self.names = self.names, _union(self.names, row)
        found = resolve_columns(self.columns, self.names, self.where)
        if found != self.found:
            self._refuse(found, before, f"line {line} has")

    def _refuse(self, found: Columns, row: Mapping[str, Any], having: str) -> None:
        """Name the column that the first row lacks."""
        for flag, name in (("label", found.label), ("source", found.source), ("text", found.text)):
            lacking = [part for part in _parts(row, name) if part not in row and "." not in part] if name else []
            if lacking:
                option = f"pass --{flag}_column {NO_COLUMN if flag != 'text' else 'with another name'}"
                raise UserError(
                    f"{self.where}, line {self.line}: no column {lacking[0]!r}, which {having}: add it, remove the "
                    f"line, or {option}"
                )


def _union(names: Mapping[str, Any], row: Mapping[str, Any]) -> NestedRow:
    """The names of two rows. The values are those of the first row that has them."""
    union = NestedRow({**row, **names})
    union.outer = frozenset(getattr(names, "outer", names)) | frozenset(getattr(row, "outer", row))
    return union


def resolve_columns(columns: Columns, row: Mapping[str, Any], where: str) -> Columns:
    """The columns of text, source and label in a file with rows like `row`. Names are compared ignoring case.

    A guess takes names of the row itself before those of its inner objects.
    """
    there = {name.lower(): name for name in reversed(list(row))}  # of names that differ in case, the first ...
    there |= {name: name for name in row if name == name.lower()}  # ... or the one in lower case

    def existing(name: str | None, flag: str) -> str | None:
        if name is None or name in row or name.lower() == NO_COLUMN:
            return name
        if name.lower() in there:
            return there[name.lower()]
        if "+" in name and all(part.lower() in there for part in name.split("+")):
            return "+".join(there[part.lower()] for part in name.split("+"))
        if "." in name and isinstance(row.get(name.partition(".")[0]), dict):
            return name
        shown = ", ".join(map(str, row)) if row else "none at all"
        raise UserError(
            f"{where}: there is no column {name!r}{did_you_mean(name, row)}, only {shown}: pass {flag} with one of them"
            + (f", or {NO_COLUMN}" if flag != "--text_column" else "")
        )

    named = Columns(
        existing(columns.text, "--text_column"),
        existing(columns.source, "--source_column"),
        existing(columns.label, "--label_column"),
    )
    text, source, label = named.text, named.source, named.label
    if columns.guess:
        outer = getattr(row, "outer", None)
        for names in ({k: v for k, v in there.items() if v in outer} if outer is not None else there, there):
            pair = next((p for p in PAIRS if _fits(p, names, source, text)), (None, None))
            free = [name for name in TEXT_NAMES if name in names and names[name] not in (source, label)]
            if source is None and pair[0] and pair[1] and text is None:
                source, text = _spelled(pair[0], names), _spelled(pair[1], names)
            source = source or (_spelled(pair[0], names) if pair[0] else None)
            text = text or (_spelled(pair[1], names) if pair[1] else next((names[name] for name in free), None))
            used = (source, text)
            label = label or next((names[n] for n in LABEL_NAMES if n in names and names[n] not in used), None)
            if text is not None:
                break
        for name, given, flag in ((text, named.text, "text"), (source, named.source, "source")):
            if name is not None and name != given:
                _check_one_owner(name, row, outer, where, flag)
    if text is None and len(row) == 1 and isinstance(next(iter(row.values())), str | None):
        text = next(iter(row))
    if text is None or text.lower() == NO_COLUMN:
        raise UserError(
            f"{where}: which of its columns ({', '.join(map(str, row))}) holds the text? Name it with --text_column"
        )
    return Columns(text, _unless_none(source), _unless_none(label))


def _unless_none(name: str | None) -> str | None:
    return None if name is None or name.lower() == NO_COLUMN else name


def _spelled(name: str, there: Mapping[str, str]) -> str:
    """A usual name, or several joined by +, in the file's spelling."""
    return "+".join(there[part] for part in name.split("+"))


def _fits(pair: tuple[str, str], there: Mapping[str, str], source: str | None, text: str | None) -> bool:
    """Whether the file has this usual pair of names and the pair agrees with the columns that were named."""
    parts = (*pair[0].split("+"), pair[1])
    if source == NO_COLUMN or not all(part in there for part in parts):
        return False
    return source in (None, _spelled(pair[0], there)) and text in (None, there[pair[1]])


def _check_one_owner(name: str, row: Mapping[str, Any], outer: frozenset[str] | None, where: str, flag: str) -> None:
    """UserError for a guessed name that several inner objects have."""
    owners = [k for k, v in row.items() if outer and k in outer and isinstance(v, dict) and name in v]
    if outer is not None and name not in outer and len(owners) > 1:
        raise UserError(
            f"{where}: {' and '.join(owners)} hold a {name!r}: name one with --{flag}_column, such as "
            f"{owners[0]}.{name}"
        )


# ------------------------------------------------------------------------------------------------ cells


def _parts(row: Mapping[str, Any], name: str | None) -> tuple[str, ...]:
    """The columns of a name: several if it joins them."""
    if name is None:
        return ()
    return (name,) if name in row or "+" not in name else tuple(name.split("+"))


def _cell(row: Mapping[str, Any], column: str, where: str, line: int, flag: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):  # of objects inside each other
        if not isinstance(value, dict) or name not in value:
            break
        value = value[name]
    else:
        return value
    unused = f", or pass {flag} {NO_COLUMN}" if flag != "--text_column" else ""
    raise UserError(
        f"{where}, line {line}: no column {column!r}, only {', '.join(row) or 'an empty object'}: "
        f"correct or remove the line{unused}"
    )


def _text(
    row: Mapping[str, Any], names: tuple[str, ...], split: RawSplit, line: int, clean: Callable[[str], str] | None
) -> str:
    """The text of a row; that of several columns is joined with a blank. Null and NaN are blank cells."""
    if len(names) > 1:
        return " ".join(filter(None, (_text(row, (name,), split, line, clean) for name in names)))
    column = names[0]
    value = row[column] if column in row else _cell(row, column, split.where, line, "--text_column")
    if isinstance(value, str):
        if not is_clean(value):
            value = mend(value, split.of_texts, split.where, line)
        return (clean(value) if clean else value).strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    raise UserError(
        f"{split.where}, line {line}: column {column!r} should be text, found {type(value).__name__} "
        f"{str(value)[:40]!r}: mend or remove the line, or name another column with --text_column or --source_column"
    )


def _references(
    row: Mapping[str, Any], names: tuple[str, ...], split: RawSplit, line: int, clean: Callable[[str], str] | None
) -> list[str]:
    """The texts of a source: one, or those of a list; none if it is blank."""
    value = row.get(names[0])
    if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
        text = _text(row, names, split, line, clean)
        return [text] if text else []
    texts = [_text({names[0]: item}, names[:1], split, line, clean) for item in value]
    if len(texts) > 1:
        split.of_lines.add("held several texts of one source, each of which became a row", line)
    return list(filter(None, texts))


def _label(value: Any, split: RawSplit, line: int) -> str:
    try:
        return canonical_label(mend(value, Tally(), split.where, line) if isinstance(value, str) else value)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{split.where}, line {line}: label {str(value)[:40]!r} is refused, because {error}: correct or remove the "
            f"line, or pass --label_column {NO_COLUMN}"
        ) from None


def _check_spelled_labels(split: RawSplit) -> None:
    """UserError, with the line, for a label such as "NaN" where all others are numbers."""
    if split.labels is None:
        return
    kinds = set(split.labels)
    for label in kinds:
        if spells_no_value(label, kinds):
            line = split.lines[split.labels.index(label)]
            raise UserError(
                f"{split.where}, line {line}: label {label!r} in column {split.columns.label!r} is no label, for the "
                f"others are numbers: correct or remove the line, or pass --label_column {NO_COLUMN}"
            )


# ------------------------------------------------------------------------------------------------ labels


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
        return Split(split.texts, None, split.sources)
    index_of: dict[str, int] = {}
    for label in set(split.labels):
        with suppress(TypeError, ValueError):  # named below, with its line
            index_of[label] = label_to_index(label, names)
    for line, label in zip(split.lines, split.labels, strict=True):
        if label not in index_of:
            allowed = "a number in [0, 1]" if label_to_index is binarize else f"one of the classes {_few(names)}"
            shown = label if is_number(label) else repr(label)
            raise UserError(f"{split.where}, line {line}: label {shown} is not {allowed}: correct the line")
    return Split(split.texts, [index_of[label] for label in split.labels], split.sources)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 20 else f"{', '.join(names[:20])} and {len(names) - 20} more"

"""Rows of a file -> texts, sources and labels, with the line of each row and what was dropped or mended.

This module does not depend on file formats or on the corpora of the catalog.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataset_utils.characters import is_clean, mend
from dataset_utils.columns import NO_COLUMN, ColumnResolver, Columns, joined_columns
from dataset_utils.labels import canonical_label, is_number, spells_no_value
from dataset_utils.rows import Row, Tally, UniformRows
from utils.errors import UserError

_FEW_ROWS, _FEW_SOURCES = 50, 20  # so few different sources in so many rows hardly are texts


@dataclass
class RawSplit:
    """A split whose labels are still names (see `labels`), with the line number of each row."""

    where: str  # name of the file, for messages
    texts: list[str] = field(default_factory=list)
    labels: list[str] | None = None
    sources: list[str] | None = None
    has_texts: bool = True  # False: sources alone, whose texts are empty (source_files)
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
        if not self.has_texts:
            notes.append(f"{self.where} holds {len(self):,} sources without references")
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
    resolver: ColumnResolver | None = None
    keys: Any = None
    names: dict[Any, str] = {}  # value of a label -> its name
    sources: tuple[str, ...] = ()
    for line, row in iterator:
        if resolver is None or not uniform and row.keys() != keys:
            keys = row.keys()
            if resolver is None:
                resolver = ColumnResolver(columns, where, line, row, iterator)
                found, texts = resolver.found, joined_columns(row, resolver.found.text)
                split.columns = found
                if found.source:
                    split.sources, sources = [], joined_columns(row, found.source)
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


# ------------------------------------------------------------------------------------------------ cells


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

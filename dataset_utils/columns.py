"""Which columns of a file hold text, source and label: named by flags, or found by their usual names.

All rows decide which columns a file has: no first row speaks for the others. This module does not depend on file
formats or on the corpora of the catalog.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_utils.rows import NestedRow, Row
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


class ColumnResolver:
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
            lacking = (
                [part for part in joined_columns(row, name) if part not in row and "." not in part] if name else []
            )
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


def joined_columns(row: Mapping[str, Any], name: str | None) -> tuple[str, ...]:
    """The columns of a name: several if it joins them."""
    if name is None:
        return ()
    return (name,) if name in row or "+" not in name else tuple(name.split("+"))

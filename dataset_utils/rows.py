"""Rows of a file: what every reader yields, with what it noticed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

Row = tuple[int, dict[str, Any]]  # line (from 1), columns
Reader = Callable[[Path], Iterable[Row]]


class Tally:
    """Counts what was noticed while a file was read: kind -> number of lines, and the first line."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, int]] = {}
        self.remarks: list[str] = []  # notes about the whole file

    def add(self, kind: str, line: int) -> None:
        """kind: the end of a sentence, such as "repeated the header and were dropped"."""
        count, first = self.found.get(kind, (0, line))
        self.found[kind] = (count + 1, first)

    def notes(self, item: str, where: str, total: int = 0) -> list[str]:
        """The remarks, and one line for each kind. item: such as "line"; total: number of items, for the share."""
        notes = list(self.remarks)
        for kind, (count, first) in self.found.items():
            number = f"{count:,} of {total:,} {item}s ({count / total:.1%})" if total else f"{count:,} {item}"
            plural = "s" if count > 1 and not total else ""
            notes.append(f"{number}{plural} of {where} {kind}; the first is line {first}")
        return notes


class Rows(Iterator[Row]):
    """An iterator over rows that also holds notes. They are complete after the last row."""

    def __init__(self, rows: Callable[[Tally], Iterator[Row]]) -> None:
        self.tally = Tally()
        self._rows = rows(self.tally)

    def __next__(self) -> Row:
        return next(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return self._rows  # a generator is faster than a call of __next__ for each row


class UniformRows(Rows):
    """Rows that all have the same names: those of the first need not be compared with the others."""


def reader(rows: Callable[[Path, Tally], Iterator[Row]]) -> Callable[[Path], Rows]:
    """Turn a generator function of (path, tally) into a reader of path."""

    @wraps(rows)
    def read(path: Path) -> Rows:
        return Rows(lambda tally: rows(path, tally))

    return read


def uniform_reader(rows: Callable[[Path, Tally], Iterator[Row]]) -> Callable[[Path], Rows]:
    """The same for a format in which all rows have the same names."""

    @wraps(rows)
    def read(path: Path) -> Rows:
        return UniformRows(lambda tally: rows(path, tally))

    return read


class NestedRow(dict[str, Any]):
    """A row with the keys of its inner objects added. `outer` holds its own names."""

    outer: frozenset[str]


def flatten(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the keys of inner objects added: {"translation": {"de": a, "en": b}} also has de and en.

    A name of the row itself, or of an earlier inner object, is never replaced.
    """
    inner = [value for value in row.values() if isinstance(value, dict)]
    if not inner:
        return row
    flat = NestedRow(row)
    for value in inner:
        for name, item in value.items():
            flat.setdefault(name, item)
    flat.outer = frozenset(row)
    return flat

"""Tables: .csv and .tsv files. Finds separator, quoting and header, and checks each guess on all rows.

A table has a header, except a .tsv file of `text <tab> label` lines. What contradicts a guess is a UserError with the
line and what to do.
"""

from __future__ import annotations

import csv as csv_module
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from shlex import quote

from dataset_utils.rows import Row, Rows, Tally, UniformRows, uniform_reader
from dataset_utils.text_files import COMPRESSED, raw_lines
from utils.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
REPEATED = "repeated the header, as in joined files (dropped)"
BARE = ("text", "label")  # columns of a .tsv file without a header
_NAME = re.compile(r"[^\W\d][\w.-]{0,39}")  # a column name: a text would have blanks, a label may be a number
_SENTENCE = re.compile(r".{41,}|.*[.!?…。！？]|[-+]?[\d.,]+", re.DOTALL)  # hardly a column name
_HINT = re.compile(r"\"?sep=(.)\"?")  # the first line of some exported tables
_MANY_ROWS = 10  # in so few rows, that all cells of a column begin and end with a quotation mark may be chance
_FEW_CLASSES = 10  # a file without a header may have as many classes, and no more than a quarter of its rows

Cells = tuple[int, list[str]]  # line, cells

csv_module.field_size_limit(2**31 - 1)  # of the process; the default of 128 KiB is too small for documents


def default_separator(path: Path) -> str:
    """Tab for .tsv, comma for .csv, also if compressed."""
    name = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return "\t" if name.lower().endswith(".tsv") else ","


@uniform_reader
def csv(path: Path, tally: Tally) -> Iterator[Row]:
    """Comma-separated values, quoted with double quotes, with a header line."""
    return _with_header(path, ",", tally)


@uniform_reader
def tsv(path: Path, tally: Tally) -> Iterator[Row]:
    """Tab-separated values with a header line. Cells are read as quoted if the whole file agrees with that."""
    return _with_header(path, "\t", tally)


def table(path: Path, named: Collection[str], known: Collection[str]) -> Rows:
    """A table of which only the path is known. named: columns that flags name; known: usual names, in lower case.

    UserError, in one line that names flags, if the first line may be a header or not.
    """
    return UniformRows(lambda tally: _guessed(path, {name.lower() for name in named}, known, tally))


def _guessed(path: Path, named: Collection[str], known: Collection[str], tally: Tally) -> Iterator[Row]:
    separator = _separator(path, {*named, *known})
    first = next(_cells(path, separator, Tally()), None)
    if first is None:
        return iter(())
    if separator != default_separator(path):
        tally.remarks.append(
            f"the cells of {path} are separated by {SEPARATORS[separator]} ({separator!r}), as its header says"
        )
    line, cells = first
    cells = [cell.strip() for cell in cells]
    lowered = [cell.lower() for cell in cells]
    if any(name in named for name in lowered):
        return _with_header(path, separator, tally)
    sentences = [cell for cell in cells if _SENTENCE.fullmatch(cell)]
    usual = [i for i, name in enumerate(lowered) if name in known]
    names = all(_NAME.fullmatch(cell) for cell in cells)
    pair = separator == "\t" and len(cells) == 2
    if usual and not (pair and sentences):
        return _with_header(path, separator, tally, usual)
    if named and not sentences:  # the reader of columns names the flag that is wrong
        return _with_header(path, separator, tally)
    if pair:
        return _labeled(path, line, cells, names, tally)
    if len(cells) == 2 and all(cells) and not sentences:
        raise _which(path, line, cells, separator)
    if len(cells) == 1 and names:
        return _one_column(path, line, cells[0], tally)
    if len(cells) > 2 and not sentences:
        return _with_header(path, separator, tally)
    raise UserError(
        f"{path}, line {line}: {(sentences or cells)[0][:40]!r} is not a column name: add a header with names such as "
        "text, label or source, target, or name the columns with --text_column"
    )


def _separator(path: Path, names: Collection[str]) -> str:
    """The default separator, unless the header is one cell and another separator parts it into column names."""
    default = default_separator(path)
    header = next((line for line in raw_lines(path, Tally()) if line.strip()), "").rstrip("\r\n")
    cells = next(csv_module.reader([header], delimiter=default), [])
    if len(cells) > 1 or _HINT.fullmatch(header):
        return default
    for separator in SEPARATORS:
        parts = [part.strip().strip("\"'").lower() for part in header.split(separator)]
        if len(parts) > 1 and (set(parts) & set(names) or all(map(_NAME.fullmatch, parts))):
            return separator
    return default


def _which(path: Path, line: int, cells: Sequence[str], separator: str) -> UserError:
    mark = "<tab>" if separator == "\t" else separator
    shown = f" {mark} ".join(cell[:40] for cell in cells)
    flags = f"--text_column {quote(cells[0])} --label_column {quote(cells[1])}"
    return UserError(
        f"{path}, line {line}: is `{shown}` a header? If so, name its columns, such as {flags}; if it is a text, put "
        f"the line `text{mark}label` above it"
    )


# ------------------------------------------------------------------------------------------------ rows


def _with_header(path: Path, separator: str, tally: Tally, guessed: Sequence[int] = ()) -> Iterator[Row]:
    """Rows below the header. guessed: columns for whose names the first line was taken for a header.

    A value that equals the name of such a column contradicts the guess, unless the row repeats the whole header.
    """
    rows = _cells(path, separator, tally)
    line, typed = next(rows, (0, []))
    header = [name.strip() for name in typed]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}, line {line}: two columns are named {twice!r}: rename one of them")
    width, names, last = len(header), {*header, *typed}, line
    outer_values = cache(lambda: _outer_values(path, separator))
    for line, cells in rows:
        if len(cells) != width:
            if any(cells[width:]) or len(cells) < width:
                raise _ragged(path, line, cells, header, separator)
            cells = cells[:width]  # separators at the end of a line
        if line - last > 1 and width > 1:
            _check_swallowed(path, last + 1, line, cells, separator, outer_values)
        last = line
        if cells[0] in names:
            found = [cell.strip() for cell in cells]
            if found == header:
                tally.add(REPEATED, line)
                continue
            if width > 1 and set(found) == set(header):
                raise UserError(
                    f"{path}, line {line}: another header ({', '.join(found)}) than in line 1 ({', '.join(header)}): "
                    "join files with the same order of columns"
                )
        for column in guessed:
            if cells[column] == header[column]:
                raise UserError(
                    f"{path}, line {line}: column {header[column]!r} holds its own name: if line 1 is a header, pass "
                    f"--text_column or --label_column with a column of it; if it is a text, put a header above it"
                )
        yield line, dict(zip(header, cells, strict=False))  # equal lengths: checked above, faster than strict


def _hidden_labels(cells: Sequence[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """For cells over several lines whose lines look like rows: what would be their labels, with the column, 0 or -1."""
    for cell in cells:
        inner = cell.splitlines()
        for part, column in ((inner[:-1], -1), (inner[1:], 0)):  # lines that are complete at their end, or beginning
            ends = [line.split(separator)[column].strip().strip('"') for line in part]
            if part and all(ends) and all(line.count(separator) >= len(cells) - 1 for line in part):
                yield column, ends


def _outer_values(path: Path, separator: str) -> Counter[tuple[int, str]]:
    """How often each value occurs in the first column (0) and in the last (-1)."""
    rows = _cells(path, separator, Tally())
    return Counter((column, cells[column].strip()) for _, cells in rows for column in (0, -1))


def _check_swallowed(
    path: Path,
    start: int,
    end: int,
    cells: Sequence[str],
    separator: str,
    outer_values: Callable[[], Mapping[tuple[int, str], int]],
) -> None:
    """UserError if a cell over several lines holds rows of the table: its quotation mark was left open before them.

    The lines of such a cell end, or begin, with values that other rows have in their last, or first, column.
    """
    for column, labels in _hidden_labels(cells, separator):
        if all(outer_values().get((column, label), 0) > 1 for label in labels):
            raise UserError(
                f"{path}, line {start}: a quotation mark that opens here closes in line {end}, and the lines between "
                "look like rows: close it in its line"
            )


def _labeled(path: Path, first: int, cells: Sequence[str], names: bool, tally: Tally) -> Iterator[Row]:
    """Rows of a .tsv file of two columns that seems to have no header: `text <tab> label`.

    The first line is taken for a text because its label occurs again. If it does not, it may be an unknown header.
    UserError for a second column that does not look like labels.
    """
    counts: dict[str, int] = {}
    firsts: set[str] = set()
    for line, row in _cells(path, "\t", tally):
        if len(row) < 2:
            raise UserError(
                f"{path}, line {line}: expected `text <tab> label`, found {row[0][:40]!r}: correct or remove the line"
            )
        label = row[-1]
        counts[label] = counts.get(label, 0) + 1
        firsts.add(row[0])
        yield line, {"text": row[0] if len(row) == 2 else "\t".join(row[:-1]), "label": label}
    singles = sum(count == 1 for count in counts.values())
    alone = counts.get(cells[1], 0) <= 1 and len(counts) > 1
    if alone and (names or singles == 1):
        raise _which(path, first, cells, "\t")
    total, different = sum(counts.values()), len(counts)
    found = f"{path}, line {first}: there is no header, and the second column has {different:,} different values in "
    if different >= 4 and 2 * len(firsts) <= different:
        raise UserError(
            f"{found}{total:,} rows, the first only {len(firsts):,}: if the first holds labels, put the line "
            "`label<tab>text` above it; else name both columns in such a line"
        )
    if different > max(_FEW_CLASSES, total // 4):
        raise UserError(
            f"{found}{total:,} rows, too many for classes: put a line with the names of both columns above it, such as "
            "`source<tab>text` if the second is written from the first, or `text<tab>id` or `id<tab>text` if one of "
            "them is not used"
        )


def _one_column(path: Path, first: int, name: str, tally: Tally) -> Iterator[Row]:
    """Rows of a table of one column with an unknown name. If texts look like names, the first may be one of them."""
    alike = total = 0
    for line, row in _with_header(path, default_separator(path), tally):
        total += 1
        alike += bool(_NAME.fullmatch(row[name].strip()))
        yield line, row
    if alike > total // 10:
        raise UserError(
            f"{path}, line {first}: is {name!r} a header or the first text? For a header, pass --text_column "
            f"{quote(name)}; if it is a text, put the line `text` above it"
        )


def _ragged(path: Path, line: int, cells: Sequence[str], header: Sequence[str], separator: str) -> UserError:
    many = (
        f"put quotation marks around a cell that holds a separator ({separator!r})"
        if len(cells) > len(header) else "correct or remove the line"
    )  # fmt: skip
    if len(header) == 1:
        many += ", or name the file .txt, with one text per line"
    other = next((s for s in SEPARATORS if s != separator and sum(s in cell for cell in (*cells, *header)) > 1), None)
    hint = f", or part all cells by {SEPARATORS[separator]}, not by {SEPARATORS[other]}" if other else ""
    return UserError(
        f"{path}, line {line}: {len(cells)} cells under {len(header)} columns ({', '.join(header)}): {many}{hint}"
    )


# ------------------------------------------------------------------------------------------------ cells


def _cells(path: Path, separator: str, tally: Tally) -> Iterator[Cells]:
    """Cells of the lines that are not blank."""
    pieces = raw_lines(path, tally)  # csv keeps line ends inside quotation marks
    first = next(pieces, None)
    if first is None:
        return
    offset = 0
    hint = _HINT.fullmatch(first.rstrip("\r\n"))
    if hint and hint[1] in SEPARATORS:
        separator, offset = hint[1], 1
    else:
        pieces = chain([first], pieces)
    begin = list(islice(pieces, 2))
    pieces = chain(begin, pieces)
    if _singly_quoted(path, begin[-1:], separator):
        tally.remarks.append(f"the cells of {path} are quoted with single quotation marks, which were removed")
        yield from _quoted(path, pieces, separator, offset, "'")
    else:
        yield from _tabbed(path, pieces, offset) if separator == "\t" else _quoted(path, pieces, separator, offset)


def _singly_quoted(path: Path, begin: Sequence[str], separator: str) -> bool:
    """Whether single quotation marks quote cells: those of at least one column, in all rows but the header.

    begin: one of the first lines below the header; the whole file is read only if a cell in it begins with such a mark.
    """
    part = re.escape(separator)
    if not any(re.search(rf"(?:^|{part}) *'", line) for line in begin):
        return False
    cell = rf" *'(?:[^']|'')*'(?={part}|$)|(?! *')[^{part}\"]*"  # quoted, or bare
    row, split = re.compile(rf"(?:{cell})(?:{part}(?:{cell}))*"), re.compile(rf"(?:^|{part})({cell})")
    always: set[int] | None = None
    num_rows, widths = 0, set[int]()
    for line in raw_lines(path, Tally()):
        line = line.rstrip("\r\n")
        if not line.strip() or _HINT.fullmatch(line):
            continue
        if not row.fullmatch(line):
            return False
        cells = split.findall(line)
        widths.add(len(cells))
        num_rows += 1
        if num_rows > 1:  # the header may be bare
            marked = {column for column, found in enumerate(cells) if found.lstrip(" ").startswith("'")}
            always = marked if always is None else always & marked
            if not always:
                return False
    return len(widths) == 1 and num_rows > _MANY_ROWS


def _quoted(path: Path, pieces: Iterator[str], separator: str, offset: int = 0, mark: str = '"') -> Iterator[Cells]:
    """Cells that may be quoted. Blanks before a quotation mark are skipped. offset: lines before the first piece."""
    rows = csv_module.reader(pieces, delimiter=separator, quotechar=mark, skipinitialspace=True, strict=True)
    end = 0
    try:
        for cells in rows:
            end = rows.line_num
            if any(cells):
                yield offset + end, cells
    except csv_module.Error as error:
        start, last = offset + end + 1, offset + rows.line_num
        raise _quote_error(path, start, last, separator, str(error)) from None


def _quote_error(path: Path, start: int, last: int, separator: str, reason: str) -> UserError:
    """The row that begins in line `start` cannot be parsed; the parser noticed that in line `last`."""
    if "end of data" in reason or last > start:
        goes_on = "is never closed" if "end of data" in reason else f"is not closed before line {last}"
        return UserError(f"{path}, line {start}: a quotation mark that opens here {goes_on}: close or remove it")
    return UserError(
        f"{path}, line {start}: a quotation mark is followed by text or a blank, not by a separator ({separator!r}): "
        'remove what follows, or double a mark that belongs to the text ("")'
    )


def _tabbed(path: Path, pieces: Iterator[str], offset: int) -> Iterator[Cells]:
    """Cells between tabs. Quotation marks are part of the text, unless the whole file agrees that they quote."""
    number, decided = offset, False
    for line in pieces:
        number += 1
        if not decided and '"' in line and _OPENS.search(line):
            decided = True
            if _quotes(path):
                yield from _quoted(path, chain([line], pieces), "\t", number - 1)
                return
        if not line.isspace():
            yield number, line.rstrip("\r\n").split("\t")


_OPENS = re.compile(r'(?:^|\t) *"')
_QUOTED_CELL = re.compile(r' *"((?:[^"]|"")*)" *')


def _quotes(path: Path) -> bool:
    """Whether quotation marks quote cells of a .tsv file, by all of its rows.

    Evidence: doubled marks or tabs or line ends inside, or columns in which every cell is quoted (every one but the
    header's, if there are many). Contradiction: a cell that begins with a mark and does not end with one. UserError,
    with the line, for a file that has both.
    """
    doubled = wrong = 0
    quoted: dict[int, int] = {}
    num_rows = width = 0
    bare_header = False
    for number, line in enumerate(raw_lines(path, Tally()), start=1):
        cells = line.rstrip("\r\n").split("\t")
        if cells == [""]:
            continue
        num_rows += 1
        width = width or len(cells)
        for column, cell in enumerate(cells):
            if not cell.lstrip(" ").startswith('"'):
                continue
            match = _QUOTED_CELL.fullmatch(cell)
            if match is None:
                wrong = wrong or number
                continue
            quoted[column] = quoted.get(column, 0) + 1
            if '""' in match[1]:
                doubled = doubled or number
        if num_rows == 1:
            bare_header = not quoted
    if wrong:  # tabs or line ends inside quoted cells look wrong, line by line
        parses = _parses(path)
        if doubled and not parses:
            raise UserError(
                f"{path}, line {wrong}: a quotation mark opens a cell and does not close it, but in line {doubled} "
                'marks quote a cell: write the mark of a text twice and quote the cell, as in """Yes,"" he said."'
            )
        return parses
    expected = num_rows - (bare_header and num_rows > _MANY_ROWS)
    return bool(doubled) or (bool(quoted) and all(count == expected for count in quoted.values()))


def _parses(path: Path) -> bool:
    """Whether all rows have one width if quotation marks quote, and no cell swallows other rows."""
    widths: set[int] = set()
    values: Counter[tuple[int, str]] = Counter()
    hidden: list[list[tuple[int, str]]] = []
    try:
        for _, cells in _quoted(path, raw_lines(path, Tally()), "\t"):
            widths.add(len(cells))
            found = [[(column, end) for end in ends] for column, ends in _hidden_labels(cells, "\t")]
            hidden += found
            values.update([(0, cells[0].strip()), (-1, cells[-1].strip()), *(key for keys in found for key in keys)])
    except UserError:
        return False
    return len(widths) == 1 and not any(all(values[key] > 1 for key in keys) for keys in hidden)

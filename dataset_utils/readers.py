"""File formats: one function each, path -> rows, a row being (line number, {column: value}).

A reader knows how a format is written, and nothing of what its columns mean (`columns` decides that). A line that is
not what the format says is a UserError with file and line.
"""

from __future__ import annotations

import bz2
import csv as csv_module
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from utils.errors import UserError

Row = tuple[int, dict[str, Any]]  # line (from 1), columns
Reader = Callable[[Path], Iterator[Row]]


COMPRESSED: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file without their ends. Only \\n and \\r\\n end a line: texts may hold U+2028.

    A file whose name ends in .gz, .bz2 or .xz is unpacked on the way.
    """
    try:
        with COMPRESSED.get(path.suffix.lower(), lambda path: path.open("rb"))(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}): "
                        "convert the file, e.g. with iconv -t UTF-8"
                    ) from None
                yield number, line.removesuffix("\n").removesuffix("\r")
    except IsADirectoryError:
        raise UserError(f"{path} is a folder where a file was expected: name the file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is not a whole {path.suffix} file ({error}): fetch it again") from None


def _json(path: Path, number: int, line: str, expected: str) -> Any:
    try:
        return _loaded(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: expected {expected}, but it is not JSON ({error.msg} at column "
            f"{error.colno}): mend or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: not to be read ({error}): mend or remove the line") from None


def _loaded(text: str) -> Any:
    """Of JSON. ValueError, too, for half of a surrogate pair: Python reads it, but it is no text and no tokenizer's."""
    value = json.loads(text)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair, {error.object[error.start]!r}") from None
    return value


def plain(path: Path) -> Iterator[Row]:
    """A text per line."""
    for number, line in lines(path):
        yield number, {"text": line}


def jsonl(path: Path) -> Iterator[Row]:
    """A JSON object per line. Columns inside an object (a `translation`) are columns of the row."""
    expected = 'an object such as {"text": "..."}'
    for number, line in lines(path):
        if not line.strip():
            continue
        value = _json(path, number, line, expected)
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, line {number}: expected {expected}, found {type(value).__name__} {line[:40]!r}: "
                "mend or remove the line"
            )
        yield number, flat(value)


def json_file(path: Path) -> Iterator[Row]:
    """A .json file in one of its usual forms: an object per line; a list with one string per line; one list of objects.

    The last form is read whole; the line is then the number of the object in the list.
    """
    first = next((line.strip() for _, line in lines(path) if line.strip()), "")
    if first.startswith("{") and first.endswith("}"):
        return jsonl(path)
    if first.startswith("[") and first.endswith("]"):
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            return rocstories(path)
    return _json_list(path)


def _json_list(path: Path) -> Iterator[Row]:
    expected = 'a list of objects such as [{"text": "..."}]'
    try:
        rows = _loaded("\n".join(line for _, line in lines(path)) or "[]")
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: expected {expected}, but it is not JSON ({error.msg} at column "
            f"{error.colno}): mend the file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not to be read ({error}): mend the file") from None
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, object {number}: expected {expected}, found {type(row).__name__}: mend or remove it"
            )
        yield number, flat(row)


def rocstories(path: Path) -> Iterator[Row]:
    """A JSON list with one string per line: the story.

    Differs from the reference, which cuts two characters off both ends: escapes such as \\" and \\u2019 are undone.
    """
    expected = 'a list with one string, ["..."]'
    for number, line in lines(path):
        if not line.strip():
            continue
        value = _json(path, number, line, expected)
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)):
            raise UserError(f"{path}, line {number}: expected {expected}, found {line[:40]!r}: mend or remove the line")
        yield number, {"text": value[0]}


def e2e(path: Path) -> Iterator[Row]:
    """`name : X | Type : Y || text`: the meaning representation and a text that says it."""
    for number, line in lines(path):
        if not line.strip():
            continue
        meaning, bars, text = line.partition("||")
        if not bars:
            raise UserError(
                f"{path}, line {number}: expected `field : value | ... || text`, found no || in "
                f"{line[:40]!r}: mend or remove the line"
            )
        yield number, {"text": text, "meaning": meaning.strip()}


def _table(path: Path, delimiter: str, quoting: int) -> Iterator[Row]:
    csv_module.field_size_limit(1 << 24)  # a document may be longer than the library's 128 KiB
    # lines are decoded one by one, so that a wrong byte is found on its own line; "\n" put back for quoted line breaks
    texts = (line + "\n" for _, line in lines(path))
    rows = csv_module.reader(texts, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    header: list[str] | None = None
    while True:
        try:
            cells = next(rows, None)
        except csv_module.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: {error}: mend or remove the line") from None
        if cells is None:
            return
        if not any(cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice:
                raise UserError(f"{path}, line {rows.line_num}: two columns are called {twice!r}: rename one of them")
        elif len(cells) != len(header):
            raise UserError(
                f"{path}, line {rows.line_num}: {len(cells)} cells under {len(header)} columns "
                f"({', '.join(header)}): mend or remove the line"
            )
        else:
            yield rows.line_num, dict(zip(header, cells, strict=True))


def csv(path: Path) -> Iterator[Row]:
    """Comma-separated, quoted by double quotes, the first line naming the columns."""
    return _table(path, ",", csv_module.QUOTE_MINIMAL)


def tsv(path: Path) -> Iterator[Row]:
    """Tab-separated, the first line naming the columns. A quotation mark is a character like any other."""
    return _table(path, "\t", csv_module.QUOTE_NONE)


def labelled_lines(path: Path) -> Iterator[Row]:
    """`text <tab> label` per line, no header."""
    for number, line in lines(path):
        if not line.strip():
            continue
        text, tab, label = line.rpartition("\t")
        if not tab:
            raise UserError(
                f"{path}, line {number}: expected `text <tab> label`, found {line[:40]!r}: mend or remove the line"
            )
        yield number, {"text": text, "label": label}


def parquet(path: Path) -> Iterator[Row]:
    """Parquet; the line is the row."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, flat(row)
    except ArrowException as error:
        raise UserError(f"{path} is not a whole parquet file ({error}): fetch it again") from None


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """Columns of inner objects beside the outer ones: {"translation": {"de": a, "en": b}} has de and en."""
    inner = {k: v for value in row.values() if isinstance(value, dict) for k, v in value.items()}
    return {**inner, **row} if inner else row


BY_SUFFIX: dict[str, Reader] = {
    ".txt": plain, ".jsonl": jsonl, ".json": json_file, ".csv": csv, ".tsv": tsv, ".parquet": parquet,
}  # fmt: skip
TABLES = (".csv", ".tsv")  # their first line names the columns


def suffix(path: Path) -> str:
    """The end of a file's name that says its format: that before .gz, where it is compressed."""
    packed = path.suffix.lower() in COMPRESSED
    return (Path(path.stem) if packed else path).suffix.lower()


def first_cells(path: Path) -> list[str]:
    """The cells of the first line of a .csv or .tsv file: names of columns, if it has them."""
    tabs = suffix(path) == ".tsv"
    for _, line in lines(path):
        if line.strip():
            cells = line.split("\t") if tabs else next(csv_module.reader([line]))
            return [cell.strip() for cell in cells]
    return []


def by_suffix(path: Path) -> Reader:
    """The reader of a file by the end of its name."""
    if suffix(path) not in BY_SUFFIX:
        raise UserError(
            f"{path}: no reader for files ending in {suffix(path) or 'nothing'!r}: "
            f"convert it to one of {', '.join(BY_SUFFIX)}"
        )
    return BY_SUFFIX[suffix(path)]

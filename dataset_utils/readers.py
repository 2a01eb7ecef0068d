"""File formats: one function for each, path -> rows. A row is (line number, {column: value}).

A reader parses a format; what the columns mean is decided in `columns`. A line that does not have the format raises a
UserError with file and line.
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
    """Numbered lines of a UTF-8 file without line ends. Only \\n and \\r\\n end a line: texts may contain U+2028.

    A file whose name ends in .gz, .bz2 or .xz is decompressed while it is read.
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
        raise UserError(f"{path} is a folder, not a file: name the file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is not a complete {path.suffix} file ({error}): download it again") from None


def _parse_line(path: Path, number: int, line: str, expected: str) -> Any:
    try:
        return _parse_json(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: expected {expected}, but it is not JSON ({error.msg} at column "
            f"{error.colno}): correct or remove the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}, line {number}: cannot be parsed ({error}): correct or remove the line") from None


def _parse_json(text: str) -> Any:
    """Parse JSON. ValueError also for half of a surrogate pair: Python accepts it, but no tokenizer does."""
    value = json.loads(text)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair, {error.object[error.start]!r}") from None
    return value


def plain(path: Path) -> Iterator[Row]:
    """One text per line."""
    for number, line in lines(path):
        yield number, {"text": line}


def jsonl(path: Path) -> Iterator[Row]:
    """One JSON object per line. Keys of an inner object (such as `translation`) also become columns of the row."""
    expected = 'an object such as {"text": "..."}'
    for number, line in lines(path):
        if not line.strip():
            continue
        value = _parse_line(path, number, line, expected)
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, line {number}: expected {expected}, found {type(value).__name__} {line[:40]!r}: "
                "correct or remove the line"
            )
        yield number, flatten(value)


def json_file(path: Path) -> Iterator[Row]:
    """A .json file: one object per line, a list with one string per line, or one list of objects.

    In the last case the whole file is loaded, and the line number is the position of the object in the list.
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
        rows = _parse_json("\n".join(line for _, line in lines(path)) or "[]")
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: expected {expected}, but it is not JSON ({error.msg} at column "
            f"{error.colno}): correct the file"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be parsed ({error}): correct the file") from None
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, object {number}: expected {expected}, found {type(row).__name__}: correct or remove it"
            )
        yield number, flatten(row)


def rocstories(path: Path) -> Iterator[Row]:
    """One JSON list per line, with one string: the story.

    Differs from the reference, which removes two characters at both ends: escapes such as \\" and \\u2019 are decoded.
    """
    expected = 'a list with one string, ["..."]'
    for number, line in lines(path):
        if not line.strip():
            continue
        value = _parse_line(path, number, line, expected)
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)):
            raise UserError(
                f"{path}, line {number}: expected {expected}, found {line[:40]!r}: correct or remove the line"
            )
        yield number, {"text": value[0]}


def e2e(path: Path) -> Iterator[Row]:
    """`name : X | Type : Y || text`: a meaning representation and a text that expresses it."""
    for number, line in lines(path):
        if not line.strip():
            continue
        meaning, bars, text = line.partition("||")
        if not bars:
            raise UserError(
                f"{path}, line {number}: expected `field : value | ... || text`, found no || in "
                f"{line[:40]!r}: correct or remove the line"
            )
        yield number, {"text": text, "meaning": meaning.strip()}


def _table(path: Path, delimiter: str, quoting: int) -> Iterator[Row]:
    csv_module.field_size_limit(1 << 24)  # the default limit of 128 KiB is too small for documents
    # Lines are decoded one by one, so that an error names the line; "\n" is restored for quoted line breaks.
    texts = (line + "\n" for _, line in lines(path))
    rows = csv_module.reader(texts, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    header: list[str] | None = None
    while True:
        try:
            cells = next(rows, None)
        except csv_module.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: {error}: correct or remove the line") from None
        if cells is None:
            return
        if not any(cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice:
                raise UserError(f"{path}, line {rows.line_num}: two columns are named {twice!r}: rename one of them")
        elif len(cells) != len(header):
            raise UserError(
                f"{path}, line {rows.line_num}: {len(cells)} cells under {len(header)} columns "
                f"({', '.join(header)}): correct or remove the line"
            )
        else:
            yield rows.line_num, dict(zip(header, cells, strict=True))


def csv(path: Path) -> Iterator[Row]:
    """Comma-separated values, quoted with double quotes, with a header line."""
    return _table(path, ",", csv_module.QUOTE_MINIMAL)


def tsv(path: Path) -> Iterator[Row]:
    """Tab-separated values with a header line. Quotation marks have no special meaning."""
    return _table(path, "\t", csv_module.QUOTE_NONE)


def labeled_lines(path: Path) -> Iterator[Row]:
    """`text <tab> label` lines without a header."""
    for number, line in lines(path):
        if not line.strip():
            continue
        text, tab, label = line.rpartition("\t")
        if not tab:
            raise UserError(
                f"{path}, line {number}: expected `text <tab> label`, found {line[:40]!r}: correct or remove the line"
            )
        yield number, {"text": text, "label": label}


def parquet(path: Path) -> Iterator[Row]:
    """Parquet; the line number is the row number."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield number, flatten(row)
    except ArrowException as error:
        raise UserError(f"{path} is not a complete parquet file ({error}): download it again") from None


def flatten(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the keys of inner objects added: {"translation": {"de": a, "en": b}} also has de and en."""
    inner = {k: v for value in row.values() if isinstance(value, dict) for k, v in value.items()}
    return {**inner, **row} if inner else row


BY_SUFFIX: dict[str, Reader] = {
    ".txt": plain, ".jsonl": jsonl, ".json": json_file, ".csv": csv, ".tsv": tsv, ".parquet": parquet,
}  # fmt: skip
TABLES = (".csv", ".tsv")  # formats with a header line


def suffix(path: Path) -> str:
    """File name extension of the format, without an extension of compression such as .gz."""
    compressed = path.suffix.lower() in COMPRESSED
    return (Path(path.stem) if compressed else path).suffix.lower()


def first_cells(path: Path) -> list[str]:
    """Cells of the first line of a .csv or .tsv file: column names, if it has a header."""
    tabs = suffix(path) == ".tsv"
    for _, line in lines(path):
        if line.strip():
            cells = line.split("\t") if tabs else next(csv_module.reader([line]))
            return [cell.strip() for cell in cells]
    return []


def by_suffix(path: Path) -> Reader:
    """The reader of a file by its extension."""
    if suffix(path) not in BY_SUFFIX:
        raise UserError(
            f"{path}: unknown file name extension {suffix(path)!r}: convert it to one of {', '.join(BY_SUFFIX)}"
        )
    return BY_SUFFIX[suffix(path)]

"""File formats: one function for each, path -> rows. A row is (line number, {column: value}).

A reader parses a format; what the columns mean is decided in `columns`. A line that does not have the format raises a
UserError with file and line. Tables are in `tables`, JSON in `json_files`, decoding in `text_files`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataset_utils.json_files import json_file, jsonl, rocstories
from dataset_utils.rows import Reader, Row, Tally, flatten, reader, uniform_reader
from dataset_utils.tables import csv, tsv
from dataset_utils.text_files import COMPRESSED, check_format, lines, opened
from utils.errors import UserError, one_line_text

__all__ = [
    "BY_SUFFIX", "COMPRESSED", "TABLES", "Reader", "Row", "by_suffix", "csv", "e2e", "flatten", "json_file", "jsonl",
    "labeled_lines", "lines", "opened", "parquet", "plain", "rocstories", "suffix", "tsv",
]  # fmt: skip


@uniform_reader
def plain(path: Path, tally: Tally) -> Iterator[Row]:
    """One text per line."""
    for number, line in lines(path):
        yield number, {"text": line}


@uniform_reader
def e2e(path: Path, tally: Tally) -> Iterator[Row]:
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


@uniform_reader
def labeled_lines(path: Path, tally: Tally) -> Iterator[Row]:
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


@reader
def parquet(path: Path, tally: Tally) -> Iterator[Row]:
    """Parquet; the line number is the row number."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile
    from pyarrow.types import is_struct

    number = 0
    with opened(path) as head:  # for its errors: pyarrow opens the path itself, which is faster
        check_format(path, head, "a parquet file")
        try:
            with ParquetFile(path) as file:
                names = file.schema_arrow.names
                twice = next((name for name in names if names.count(name) > 1), None)
                if twice is not None:
                    raise UserError(f"{path}: two columns are named {twice!r}: rename one of them")
                nested = any(is_struct(field.type) for field in file.schema_arrow)
                for batch in file.iter_batches(batch_size=4096):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, flatten(row) if nested else row
        except UserError:
            raise
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, after row {number}: a text is not UTF-8 ({error.reason}): write the file again"
            ) from None
        except (ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError) as error:
            reason = one_line_text(error)
            raise UserError(f"{path} is not a complete parquet file ({reason}): download it again") from None


BY_SUFFIX: dict[str, Reader] = {
    ".txt": plain, ".jsonl": jsonl, ".json": json_file, ".csv": csv, ".tsv": tsv, ".parquet": parquet,
}  # fmt: skip
TABLES = (".csv", ".tsv")  # formats with a header line

# Extensions of other formats: what to do.
_CONVERT = {
    ".zst": "decompress it with zstd -d", ".zip": "unzip it", ".7z": "unpack it", ".tar": "unpack it",
    ".tgz": "unpack it", ".xlsx": "save the sheet as CSV in UTF-8", ".xls": "save the sheet as CSV in UTF-8",
    ".ods": "save the sheet as CSV in UTF-8", ".arrow": "write it as .parquet", ".feather": "write it as .parquet",
    ".ndjson": "name it .jsonl", ".tab": "name it .tsv",
}  # fmt: skip


def suffix(path: Path) -> str:
    """File name extension of the format, without an extension of compression such as .gz."""
    compressed = path.suffix.lower() in COMPRESSED
    return (Path(path.stem) if compressed else path).suffix.lower()


def by_suffix(path: Path) -> Reader:
    """The reader of a file by its extension."""
    end = suffix(path)
    if end == ".parquet" and path.suffix.lower() in COMPRESSED:
        raise UserError(f"{path}: a parquet file is compressed inside: decompress it first")
    if end not in BY_SUFFIX:
        raise UserError(
            f"{path}: unknown file name extension {end!r}: {_CONVERT.get(end, 'convert it')}; readable are "
            f"{', '.join(BY_SUFFIX)}"
        )
    return BY_SUFFIX[end]

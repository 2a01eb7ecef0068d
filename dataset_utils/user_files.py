"""The user's own files: which file is which split, and whether the first line of a table names its columns.

Knows formats by the end of a file's name and columns by their usual names; no corpus by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from dataset_utils import readers
from dataset_utils.catalog import FILE_STEMS
from dataset_utils.columns import KNOWN_NAMES, Columns
from dataset_utils.splits import SPLITS
from utils.errors import UserError

_NAME = re.compile(r"[\w.-]{1,40}")  # what a column may be called; a text has blanks and points


def find_file(folder: Path, split: str, names: Sequence[str] = ()) -> Path | None:
    """The file of a split in a folder: by the given names, or train.jsonl and the like; packed ones too."""
    usual = [stem + suffix for stem in FILE_STEMS[split] for suffix in readers.BY_SUFFIX]
    tried = (folder / (name + packed) for packed, name in product(("", *readers.COMPRESSED), names or usual))
    return next((path for path in tried if path.is_file()), None)


def in_folder(folder: Path) -> dict[str, Path]:
    """split -> file, of a folder of the user's; a folder that is none stands for a file that is not there."""
    if not folder.is_dir():
        return {"train": folder}
    return {split: path for split in SPLITS if (path := find_file(folder, split))}


def stem(path: Path) -> str:
    """What a corpus is called after its file: stories.jsonl.gz -> stories."""
    return path.name.removesuffix(path.suffix if path.suffix.lower() in readers.COMPRESSED else "").rpartition(".")[0]


def rows(path: Path, columns: Columns) -> Iterator[readers.Row]:
    """The rows of a file of any format. A .tsv of two columns without header is `text <tab> label`.

    Errors: UserError for a file that is not there, and for a table whose first line is no header.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}: check the path")
    reader = readers.by_suffix(path)
    if path.is_file() and readers.suffix(path) in readers.TABLES:
        cells = readers.first_cells(path)
        if cells and not _is_header(cells, columns):
            if readers.suffix(path) == ".tsv" and len(cells) == 2:
                return readers.labelled_lines(path)
            raise UserError(
                f"{path}, line 1: {cells[0][:40]!r} names no column: put a line with names such as text, label or "
                "source, target before it, or name the columns with --text_column"
            )
    return reader(path)


def _is_header(cells: Sequence[str], columns: Columns) -> bool:
    typed = {name for name in (columns.text, columns.source, columns.label) if name}
    if typed & set(cells) or any(cell.lower() in KNOWN_NAMES for cell in cells):
        return True
    return bool(typed) or (len(cells) != 2 and all(_NAME.fullmatch(cell) for cell in cells))

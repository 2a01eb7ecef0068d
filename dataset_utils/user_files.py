"""The user's own files: finds the file of each split, and the header of a table if it has one.

Formats are recognized by the file name extension, columns by their usual names.
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

_COLUMN_NAME = re.compile(r"[\w.-]{1,40}")  # a text would have blanks


def find_file(folder: Path, split: str, names: Sequence[str] = ()) -> Path | None:
    """The file of a split in a folder: one of the given names, or train.jsonl and the like; also compressed."""
    defaults = [stem + suffix for stem in FILE_STEMS[split] for suffix in readers.BY_SUFFIX]
    candidates = (folder / (name + ending) for ending, name in product(("", *readers.COMPRESSED), names or defaults))
    return next((path for path in candidates if path.is_file()), None)


def find_files(folder: Path) -> dict[str, Path]:
    """split -> file in a folder. A path that is no folder is taken for the training file."""
    if not folder.is_dir():
        return {"train": folder}
    return {split: path for split in SPLITS if (path := find_file(folder, split))}


def corpus_name(path: Path) -> str:
    """Name of a corpus after its file: stories.jsonl.gz -> stories."""
    return path.name.removesuffix(path.suffix if path.suffix.lower() in readers.COMPRESSED else "").rpartition(".")[0]


def read_rows(path: Path, columns: Columns) -> Iterator[readers.Row]:
    """Rows of a file in any known format. A .tsv file of two columns without a header is read as `text <tab> label`.

    Raises UserError for a missing file, and for a table without a header.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}: check the path")
    reader = readers.by_suffix(path)
    if path.is_file() and readers.suffix(path) in readers.TABLES:
        cells = readers.first_cells(path)
        if cells and not _is_header(cells, columns):
            if readers.suffix(path) == ".tsv" and len(cells) == 2:
                return readers.labeled_lines(path)
            raise UserError(
                f"{path}, line 1: {cells[0][:40]!r} is not a column name: add a header with names such as text, "
                "label or source, target, or name the columns with --text_column"
            )
    return reader(path)


def _is_header(cells: Sequence[str], columns: Columns) -> bool:
    named = {name for name in (columns.text, columns.source, columns.label) if name}
    if named & set(cells) or any(cell.lower() in KNOWN_NAMES for cell in cells):
        return True
    return bool(named) or (len(cells) != 2 and all(_COLUMN_NAME.fullmatch(cell) for cell in cells))

"""The user's own files: finds the file of each split, and its rows.

Formats are recognized by the file name extension, columns by their usual names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from dataset_utils import readers, tables
from dataset_utils.catalog import FILE_STEMS
from dataset_utils.columns import KNOWN_NAMES, Columns
from dataset_utils.splits import SPLITS
from dataset_utils.text_files import opened
from utils.errors import UserError


def find_file(folder: Path, split: str, names: Sequence[str] = ()) -> Path | None:
    """The file of a split in a folder: one of the given names, or train.jsonl and the like; also compressed.

    UserError if there are two.
    """
    defaults = [stem + suffix for stem in FILE_STEMS[split] for suffix in readers.BY_SUFFIX]
    candidates = (folder / (name + ending) for ending, name in product(("", *readers.COMPRESSED), names or defaults))
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        flag = "" if names else f", or name one with --{split}_file"
        raise UserError(
            f"{folder} holds {len(found)} files of the {split} split ({', '.join(path.name for path in found)}): move "
            f"all but one away{flag}"
        )
    return found[0] if found else None


def find_files(folder: Path) -> dict[str, Path]:
    """split -> file in a folder. A path that is no folder is taken for the training file."""
    if not folder.is_dir():
        return {"train": folder}
    return {split: path for split in SPLITS if (path := find_file(folder, split))}


def corpus_name(path: Path) -> str:
    """Name of a corpus after its file, or after its folder: x/stories.jsonl.gz -> stories, x/train.jsonl -> x."""
    stem = path.name.removesuffix(path.suffix if path.suffix.lower() in readers.COMPRESSED else "").rpartition(".")[0]
    return path.absolute().parent.name or stem if stem.lower() in FILE_STEMS["train"] else stem


def read_rows(path: Path, columns: Columns) -> Iterable[readers.Row]:
    """Rows of a file in any known format. A .tsv file of two columns without a header is read as `text <tab> label`.

    Raises UserError for a missing file, and for a table without a header.
    """
    if not os.path.lexists(path):
        raise UserError(
            f"there is no file {path}: check the path, or name another with --train_file, --valid_file or --test_file "
            "(--data_dir: the folder of all three)"
        )
    with opened(path):  # its errors: a folder, no permission
        reader = readers.by_suffix(path)
    if readers.suffix(path) in readers.TABLES:
        return tables.table(path, columns.names(), KNOWN_NAMES)
    return reader(path)

"""Files of sources alone, whose texts are to be written: held-out files of pairs without references.

A plain .txt file holds one source per line; other formats have the column of the sources, and not that of the texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset_utils import readers
from dataset_utils.columns import Columns, joined_columns
from dataset_utils.raw_split import RawSplit, collect_rows
from dataset_utils.user_files import read_rows


def read_sources(path: Path, columns: Columns) -> RawSplit | None:
    """The sources of a file without texts, with their labels if it has them; None for a file of another kind.

    columns: those of the training file.
    """
    if columns.source is None or columns.text is None:
        return None
    is_plain, has_labels = readers.suffix(path) == ".txt", False
    if not is_plain:
        for _, row in read_rows(path, columns):  # ends at the first row of a pair
            if _has(row, columns.text) or not _has(row, columns.source):
                return None
            has_labels = columns.label is not None and _has(row, columns.label)
    own = Columns(text="text" if is_plain else columns.source, label=columns.label if has_labels else None)
    found = collect_rows(read_rows(path, own), own, str(path))
    found.sources, found.texts, found.has_texts = found.texts, [""] * len(found), False
    found.columns = columns
    return found


def _has(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column, or all of those that it joins; of the name of an inner object its first part."""
    names = {column.lower() for column in row}
    return all(part.partition(".")[0].lower() in names or part.lower() in names for part in joined_columns(row, name))

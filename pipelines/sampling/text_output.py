"""Texts as they come: to standard output and to a new file, after every batch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.terminal import single_line

FORMATS = ("text", "jsonl", "tsv")
SUFFIXES = {"text": "txt", "jsonl": "jsonl", "tsv": "tsv"}
COLUMNS = ("index", "class", "source", "text")


@dataclass(kw_only=True)
class TextRecord:
    """A text with what it was made from."""

    text: str
    seed: int
    index: int
    class_name: str | None = None
    source: str | None = None
    candidates: list[str] | None = None  # the texts from which it was chosen
    decoding: str
    decoding_settings: dict[str, Any] = field(default_factory=dict)  # flags that differ from those of the strategy


def as_json(record: TextRecord) -> str:
    row = {("class" if key == "class_name" else key): value for key, value in asdict(record).items()}
    if not record.decoding_settings:
        del row["decoding_settings"]
    return json.dumps(row, ensure_ascii=False)


def as_tsv(record: TextRecord) -> str:
    cells = (record.index, record.class_name, record.source, record.text)
    return "\t".join("" if cell is None else single_line(cell) for cell in cells)


def as_text(record: TextRecord, show_class: bool) -> str:
    """The text on one line, behind its source or its class and a tab if there are several."""
    before = record.source if record.source is not None else record.class_name if show_class else None
    return ("" if before is None else f"{single_line(before)}\t") + single_line(record.text)


class TextOutput:
    """Writes records to standard output and to a new file in a folder, which gets its name at the end."""

    def __init__(self, folder: Path, form: str, show_class: bool) -> None:
        """form: one of FORMATS. show_class: begin lines of plain text with the class of the text."""
        self.folder, self.form, self.count = folder, form, 0
        formats: dict[str, Callable[[TextRecord], str]] = {"jsonl": as_json, "tsv": as_tsv}
        self._format = formats.get(form, lambda record: as_text(record, show_class))
        self._partial = folder / f".samples.{os.getpid()}.partial"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")
        self._header = "\t".join(COLUMNS) + "\n" if form == "tsv" else ""

    def write(self, records: Sequence[TextRecord]) -> None:
        """Write the records of a batch. BrokenPipeError if the reader of standard output has closed it."""
        content = self._header + "".join(self._format(record) + "\n" for record in records)
        self._file.write(content)
        self._file.flush()  # before standard output, whose reader may have closed it
        self._header, self.count = "", self.count + len(records)
        sys.stdout.write(content)
        sys.stdout.flush()

    def finish(self, name: str) -> Path:
        """Rename the file to {name}.txt, or {name}.2.txt where that exists, and so on. Returns its path.

        OSError if the last texts cannot be written; the file gets its name all the same.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            with suppress(OSError):
                self._file.close()
            path = self._free_path(name)
            os.replace(self._partial, path)
        return path

    def _free_path(self, name: str) -> Path:
        suffix, count = SUFFIXES[self.form], 1
        path = self.folder / f"{name}.{suffix}"
        while path.exists():
            count += 1
            path = self.folder / f"{name}.{count}.{suffix}"
        return path

    def discard(self) -> None:
        """Remove the file, unless it got its name."""
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

"""What a command line asks for, text by text: sources and classes from flags, a file or standard input.

A file holds one source per line, or is JSON lines (FILE.jsonl) of objects with "source", "class" or both, such as
{"source": "Where is it?", "class": "polite"}. Standard input is JSON lines if its first character is a brace.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dataset_utils.readers import lines, suffix
from pipelines.sampling.classes import ALL, NULL, PRIOR, class_index, select_classes
from utils.errors import UserError, one_line_text
from utils.seeding import seeded_generator

STDIN = "-"
JSON_LINES = (".jsonl", ".json", ".ndjson")
SOURCE_KEYS, CLASS_KEYS = ("source", "src"), ("class", "label", "class_id")


@dataclass(frozen=True)
class Wanted:
    """A text that is asked for."""

    source: str | None = None
    class_name: Any = None  # as it was typed
    where: str = ""  # file and line, for messages
    class_id: int | None = None  # index of the class


def read_requests(file: str) -> list[Wanted]:
    """The requests of a file, or of standard input for "-". UserError if it holds none, or for a line that is none."""
    name = "standard input" if file == STDIN else f"--source_file {file}"
    if file != STDIN and not Path(file).exists():
        raise UserError(f"{name}: no such file")
    numbered = [(i, line) for i, line in (_standard_input() if file == STDIN else lines(Path(file))) if line.strip()]
    if not numbered:
        raise UserError(f"{name} holds no source: write one per line, or JSON lines with source or class")
    is_json = numbered[0][1].lstrip().startswith("{") if file == STDIN else suffix(Path(file)) in JSON_LINES
    if not is_json:
        return [Wanted(line, where=f"{name}, line {i}") for i, line in numbered]
    return [_from_json(line, f"{name}, line {i}") for i, line in numbered]


def _standard_input() -> Iterator[tuple[int, str]]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 ({one_line_text(error)[:80]}): convert it") from None
    # the same characters end a line as in a file: U+2028 and the like do not
    for i, line in enumerate(io.StringIO(text, newline=None), 1):
        yield i, line.rstrip("\n")


def _from_json(line: str, where: str) -> Wanted:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({one_line_text(error)[:80]}): write one object per line") from None
    found = row if isinstance(row, dict) else {}
    source = next((found[key] for key in SOURCE_KEYS if found.get(key) is not None), None)
    label = next((found[key] for key in CLASS_KEYS if found.get(key) is not None), None)
    if source is None and label is None:
        raise UserError(f'{where}: no object with "source" or "class": {one_line_text(line)[:60]}')
    if source is not None and not isinstance(source, str):
        raise UserError(f'{where}: "source" is {one_line_text(source)[:40]}: give a text')
    return Wanted(source, label, where)


def resolve_classes(
    wanted: Sequence[Wanted], class_id: str | None, names: Sequence[str], run: Path, seed: int, null_prob: float
) -> list[Wanted]:
    """The requests with the index of their class. class_id: --class_id, for requests that name none; "all" repeats
    each request for every class, "prior" draws classes with their training frequencies.

    UserError for an unknown class, for two classes of one request, and if only some requests have a class.
    """
    typed = [request for request in wanted if request.class_name is not None]
    if typed and class_id is not None:
        raise UserError(f"{typed[0].where} names a class, and so does --class_id {class_id}: leave one out")
    if typed and len(typed) < len(wanted):
        other = next(request for request in wanted if request.class_name is None)
        raise UserError(
            f"{other.where or '--source'} names no class, and {typed[0].where} does: give each one, or none"
        )
    if typed:
        return [replace(r, class_id=class_index(r.class_name, names, f"{r.where}: class")) for r in wanted]
    if class_id is None or class_id == NULL:
        _check_null(class_id, names, null_prob)
        return list(wanted)
    check_has_classes(names, class_id)
    if class_id == PRIOR:
        labels = prior_labels(run, names)
        rows = torch.randint(len(labels), (len(wanted),), generator=seeded_generator(seed, "classes of requests"))
        return [replace(r, class_id=c) for r, c in zip(wanted, labels[rows].tolist(), strict=True)]
    classes = select_classes(class_id, names, null_prob, training=False).per_class
    return [replace(request, class_id=c) for request in wanted for c in classes]


def _check_null(class_id: str | None, names: Sequence[str], null_prob: float) -> None:
    if names and null_prob == 0:
        raise UserError(f"this run was trained without a null class: give --class_id NAME, {ALL} or {PRIOR}")
    if class_id == NULL:
        check_has_classes(names, class_id)


def check_has_classes(names: Sequence[str], class_id: str) -> None:
    if not names:
        raise UserError(f"--class_id {class_id}: this run was trained without classes, so leave it out")


def prior_labels(run: Path, names: Sequence[str]) -> torch.Tensor:
    """A label for each measured training text (texts,), from the statistics that the run keeps of its corpus."""
    path = run / "survey.json"
    counts = json.loads(path.read_text(encoding="utf-8"))["splits"]["train"].get("labels", {}) if path.is_file() else {}
    if not counts:
        raise UserError(
            f"--class_id {PRIOR}: {run} keeps no frequencies of classes (survey.json): give a class, or {ALL}"
        )
    missing = [name for name in names if name not in counts]
    if missing:
        raise UserError(
            f"--class_id {PRIOR}: the frequencies that {run} keeps (survey.json) have no class "
            f"{one_line_text(missing[0])}: give a class, or {ALL}"
        )
    return torch.repeat_interleave(torch.arange(len(names)), torch.tensor([int(counts[name]) for name in names]))

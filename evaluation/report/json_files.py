"""Reading and checking the JSON files of a run folder. A damaged one is a UserError: which file and entry, what to do.

The checks look at what the page uses; a file may hold more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError

ADVICE = "restore it, or delete it to leave its section out"


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: {ADVICE}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        advice = "restore it: a run is nothing without it" if path.name == "args.json" else ADVICE
        raise UserError(f"{path}{line} is damaged, no valid JSON: {advice}") from None


def read_object(path: Path, check: Callable[[dict[str, Any]], bool] = lambda data: True) -> dict[str, Any]:
    data = _read_json(path)
    if not isinstance(data, dict) or not check(data):
        raise UserError(f"{path} has not the entries of such a file: {ADVICE}")
    return data


def read_optional_object(path: Path, check: Callable[[dict[str, Any]], bool] = lambda data: True) -> dict[str, Any]:
    return read_object(path, check) if path.is_file() else {}


def read_list(path: Path, check: Callable[[Any], bool]) -> list[Any]:
    data = _read_json(path)
    if not isinstance(data, list):
        raise UserError(f"{path} holds no list: {ADVICE}")
    for number, entry in enumerate(data, start=1):
        if not check(entry):
            raise UserError(f"{path} entry {number} has not the form of the others: {ADVICE}")
    return data


# What the entries of each file are.


def check_text(value: Any) -> bool:
    return isinstance(value, str)


def check_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(check_text, value))


def check_metrics(data: dict[str, Any]) -> bool:
    """Whether the protocol is a dictionary, and every summary over seeds has a list of values."""
    protocol = data.get("protocol", {})
    parts = protocol.get("runs", []) if isinstance(protocol, dict) else None
    if not isinstance(parts, list) or not all(part is None or isinstance(part, dict) for part in parts):
        return False
    summaries = [value for key, value in data.items() if key != "protocol" and isinstance(value, dict)]
    return all(isinstance(summary.get("values"), list) for summary in summaries)


def check_pair(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(check_text(value.get(key)) for key in ("source", "reference", "sample", "chosen"))
        and all(check_texts(value.get(key, [])) for key in ("references", "candidates"))
    )


def check_nearest(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not check_text(value.get("text")):
        return False
    shared = value.get("longest_shared") or {}
    numbers = (value.get("row"), value.get("similarity"))
    return (
        isinstance(shared, dict)
        and check_text(shared.get("text", ""))
        and all(_is_number(number) for number in (*numbers, shared.get("words")) if number is not None)
    )


def check_trajectory(data: dict[str, Any]) -> bool:
    views = data.get("views")
    if not isinstance(views, list) or not _is_number(data.get("steps")) or data["steps"] < 1:
        return False
    good = all(
        isinstance(view, dict)
        and _is_number(view.get("step"))
        and _is_number(view.get("t"))
        and check_texts(view.get("texts"))
        and len(view["texts"]) == len(views[0]["texts"])
        for view in views
    )
    return good and all(check_texts(data.get(key) or []) for key in ("sources", "classes"))


def check_classes(data: dict[str, Any]) -> bool:
    if not check_texts(data.get("class_names")):
        return False
    width, skipped = len(data["class_names"]), ("class_names", "protocol", "seeds")
    for key, value in data.items():
        if key in skipped:
            continue
        if not isinstance(value, dict) or not isinstance(value.get("classes"), list):
            return False
        rows, mauve = len(value["classes"]), value.get("mauve", {})
        if not all(isinstance(c, int) and 0 <= c < width for c in value["classes"]) or not isinstance(mauve, dict):
            return False
        shares = value.get("predicted_shares") or []
        if not all(_is_matrix(matrix, rows, width) for matrix in mauve.values()):
            return False
        if shares and not _is_matrix(shares, rows, width + 1):
            return False
    return True


def check_norms(data: dict[str, Any]) -> bool:
    histograms = data.get("histograms")
    return isinstance(histograms, dict) and all(
        isinstance(h, dict)
        and all(isinstance(h.get(key), list) and all(map(_is_number, h[key])) for key in ("edges", "counts"))
        and len(h["edges"]) == len(h["counts"]) + 1
        for h in histograms.values()
    )


def check_parameters(data: dict[str, Any]) -> bool:
    parts = data.get("parts")
    return isinstance(parts, dict) and all(
        isinstance(part, dict) and all(isinstance(part.get(key), int) for key in ("total", "trained"))
        for part in parts.values()
    )


def _is_matrix(value: Any, rows: int, columns: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(
            isinstance(row, list)
            and len(row) == columns
            and all(number is None or _is_number(number) for number in row)
            for row in value
        )
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

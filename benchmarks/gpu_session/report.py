"""What a phase writes while it runs: one flushed JSON line for each measurement, check and note.

The lines of a phase that is ended by its limit are therefore kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class LeftOut(Exception):
    """A phase that cannot run here; the message says why."""


class Report:
    """Appends to a file of JSON lines, and prints them."""

    def __init__(self, path: Path) -> None:
        self.path, self.failed = path, 0

    def measure(self, name: str, value: Any, unit: str = "") -> None:
        """A measured value. Its name is unique in its phase."""
        self._write({"measure": name, "value": _rounded(value), "unit": unit})

    def check(self, name: str, holds: bool, detail: str = "") -> None:
        """Something that must hold; detail: what was found, and the tolerance."""
        self.failed += not holds
        self._write({"check": name, "holds": bool(holds), "detail": detail})

    def note(self, text: str) -> None:
        """What was not done here, and why."""
        self._write({"note": text})

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def read(path: Path) -> dict[str, Any]:
    """The results of a phase: {"measures": {name: {"value", "unit"}}, "checks": [...], "notes": [...]}."""
    found: dict[str, Any] = {"measures": {}, "checks": [], "notes": []}
    for entry in _entries(path):
        if "measure" in entry:
            found["measures"][entry["measure"]] = {"value": entry["value"], "unit": entry["unit"]}
        elif "check" in entry:
            found["checks"].append(entry)
        else:
            found["notes"].append(entry["note"])
    return found


def _entries(path: Path) -> Iterable[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # the process was killed while it wrote the line
            return


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value

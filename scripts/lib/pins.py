"""Which packages a level needs, at which pin, and which of them are missing here. Standard library only.

A level is `core` (dependencies of pyproject.toml) or the name of one of its optional extras.
Versions come from constraints.txt.

    python scripts/lib/pins.py list core eval      name==version lines; torch comes first
    python scripts/lib/pins.py missing core eval   those not installed at their pin; exit status 1 when there are any
    python scripts/lib/pins.py below core eval     those not installed at their lower bound; exit status 1 likewise
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """{canonical name: version} of the lines name==version."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {canonical(name): pin for name, pin in (line.split("==") for line in lines if line)}


def bounds(levels: Sequence[str], path: Path = ROOT / "pyproject.toml") -> dict[str, str]:
    """{canonical name: lower bound} of the levels, in the order of pyproject.toml."""
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    tables = {"core": project["dependencies"], **project["optional-dependencies"]}
    for level in levels:
        if level not in tables:
            raise SystemExit(f"error: unknown level {level}; there are {', '.join(tables)}")
    rows = (row.split(">=") for level in levels for row in tables[level])
    return {canonical(name): bound for name, bound in rows}


def installed(name: str) -> str | None:
    """The version without its local suffix: 2.13.0+cpu is 2.13.0."""
    try:
        return version(name).split("+")[0]
    except PackageNotFoundError:
        return None


def at_least(found: str | None, bound: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)]

    return found is not None and numbers(found) >= numbers(bound)


def main(action: str, *levels: str) -> int:
    pinned, wanted = pins(), bounds(levels)
    if action == "list":
        rows = [f"{name}=={pinned[name]}" for name in wanted]
    elif action == "missing":
        rows = [f"{name}=={pinned[name]}" for name in wanted if installed(name) != pinned[name]]
    elif action == "below":
        rows = [f"{name}>={bound}" for name, bound in wanted.items() if not at_least(installed(name), bound)]
    else:
        raise SystemExit(f"error: unknown action {action}; there are list, missing, below")
    print("\n".join(rows))
    return int(action != "list" and bool(rows))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

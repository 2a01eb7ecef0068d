"""The table of a session: a line for each phase, its measurements, and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_GPU = "No GPU was found: this is the small run, which shows that every phase works. Its figures mean nothing."


def phase_line(result: Mapping[str, Any]) -> str:
    """One line: state, name, seconds, and how many checks hold."""
    holding = sum(check["holds"] for check in result["checks"])
    checks = f"{holding} of {len(result['checks'])} checks hold" if result["checks"] else ""
    return f"{result['status']:<10}{result['phase']:<14}{result['seconds']:7.1f} s  {checks}".rstrip()


def table(record: Mapping[str, Any]) -> str:
    """The record of a session (Session.record) as text."""
    lines = [f"{record['gpu'] or 'CPU'}, {record['seconds']:.0f} s of {60 * record['minutes']:.0f} s"]
    if not record["gpu"]:
        lines.append(NO_GPU)
    lines += ["", *(phase_line(result) for result in record["phases"])]
    for result in record["phases"]:
        body = [f"    {name:<58}{_number(m['value']):>12} {m['unit']}".rstrip() for name, m in measures(result)]
        body += [f"    FAILED: {check['check']}: {check['detail']}" for check in failed_checks(result)]
        body += [f"    {note}" for note in result["notes"]]
        body += [f"    | {line}" for line in result.get("last lines", ())]
        if body:
            lines += ["", f"{result['phase']}: {result['title']}", *body]
    return "\n".join(lines)


def measures(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(result["measures"].items())


def failed_checks(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [check for check in result["checks"] if not check["holds"]]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value:,.0f}"

"""--help, drawn from a program's flags."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import fields

from utils.flags import Flag, shown
from utils.settings import Program


def help_text(program: Program) -> str:
    """--help: every flag under its heading, with what it takes, its default and unit."""
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 140))
    column = 34

    def entry(head: str, text: str) -> str:
        body = textwrap.wrap(text, width - column) or [""]
        start = f"  {head}"
        lines = [f"{start:<{column}}{body[0]}"] if len(start) < column else [start, " " * column + body[0]]
        return "\n".join(lines + [" " * column + line for line in body[1:]])

    out = [f"usage: {program.name} [--flag value ...]", ""]
    out += textwrap.wrap(program.description, width)
    seen: set[str] = set()
    for heading, options in program.groups.items():
        names = [f.name for f in fields(options) if f.name not in seen]
        seen.update(names)
        if names:
            out += ["", f"{heading}:"]
            out += [entry(_head(program.flags[n]), _line(program.flags[n])) for n in names]
    if program.ignored:
        out += ["", "accepted without effect:"]
        out += [entry(f"--{name}", reason) for name, reason in program.ignored.items()]
    return "\n".join(out)


_PLACEHOLDERS = {int: " N", float: " X", str: " TEXT", bool: ""}


def _head(flag: Flag) -> str:
    return f"--{flag.name}{_PLACEHOLDERS[flag.type]}"


def _line(flag: Flag) -> str:
    choices = f" {{{', '.join(map(str, flag.choices))}}}" if flag.choices else ""
    unit = flag.metadata.get("unit")
    default = f"default: {shown(flag.default)}" + (f" {unit}" if unit and flag.default is not None else "")
    unit_of_none = f"; unit: {unit}" if unit and flag.default is None else ""
    return f"{flag.metadata.get('help', '')}{choices} [{default}{unit_of_none}]"

"""The text of --help, from the flags of a program."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import fields
from typing import Any

from utils.cli.flags import Flag, format_value, range_text
from utils.cli.settings import Program


def help_text(program: Program[Any]) -> str:
    """--help: every flag under its heading, with its value, default, unit and range."""
    width = max(60, min(shutil.get_terminal_size((120, 24)).columns, 140))
    column = 34

    def entry(head: str, text: str) -> str:
        body = textwrap.wrap(text, width - column) or [""]
        start = f"  {head}"
        lines = [f"{start:<{column}}{body[0]}"] if len(start) < column else [start, " " * column + body[0]]
        return "\n".join(lines + [" " * column + line for line in body[1:]])

    out = [f"usage: {program.name} [--flag value ...]", ""]
    out += textwrap.wrap(program.description, width)
    config_only = [flag for flag in program.flags.values() if flag.config_only]
    for heading, options in program.groups.items():
        flags = [program.flags[f.name] for f in fields(options)]
        entries = [entry(_head(flag), _line(flag)) for flag in flags if not flag.config_only]
        out += ["", f"{heading}:", *entries] if entries else []
    if config_only:
        out += ["", "set by --config NAME=VALUE or a --config file only:"]
        out += [entry(flag.name, _line(flag)) for flag in config_only]
    if program.deprecated:
        out += ["", "accepted without effect:"]
        out += [entry(f"--{name}", reason) for name, reason in program.deprecated.items()]
    return "\n".join(out)


_PLACEHOLDERS = {int: " N", float: " X", str: " TEXT", bool: ""}


def _head(flag: Flag) -> str:
    return f"--{flag.name}{_PLACEHOLDERS[flag.type]}"


def _line(flag: Flag) -> str:
    choices = f" {{{', '.join(map(str, flag.choices))}}}" if flag.choices else ""
    facts = [f"default: {format_value(flag.default)}"]
    if flag.unit:
        facts = [f"{facts[0]} {flag.unit}"] if flag.default is not None else [*facts, f"unit: {flag.unit}"]
    if flag.type in (int, float) and range_text(flag):
        facts.append(range_text(flag))
    if flag.type is bool and flag.default and not flag.config_only:
        facts.append(f"switched off by --no_{flag.name}")
    if flag.needed:
        facts.append(_needed(flag))
    return f"{flag.help}{choices} [{'; '.join(facts)}]"


def _needed(flag: Flag) -> str:
    assert flag.needed
    other, values = flag.needed
    if values in ((None,), (False,)):
        return f"without --{other}"
    return f"with --{other} {' or '.join(map(str, values))}".rstrip()

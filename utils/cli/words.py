"""Flags and the words of a command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from utils.cli.settings import Program


def flag_names(words: Iterable[str]) -> set[str]:
    """The names of the flags among the words of a command line."""
    return {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}


def as_words(program: Program[Any], name: str, value: Any) -> list[str]:
    """A flag and its value as words of a command line."""
    flag, text = program.flags[name], "none" if value is None else value
    if flag.config_only:
        return ["--config", f"{name}={text}"]
    if flag.type is bool:
        return [f"--{name}"] if value else []
    return [f"--{name}={text}"]

"""Parsing: the settings of a command line. A flag is a field of an options dataclass (utils.cli.flags).

Sources of a value, in ascending order of precedence:

    1. defaults of the options, then of the program's config
    2. `accelerate launch` or `accelerate config` (utils.launcher)
    3. --config FILE (YAML or JSON)
    4. args.json of --resume_dir, with --eval, --eval_test, --gen_data or --resume_training
    5. flags typed on the command line

The rules of the program run last. Neither this module nor those that it imports import torch, so that --help is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from utils.cli.args_io import read_args, read_config_argument, saved_flags
from utils.cli.flags import FALSE, TRUE, Flag, convert, expected, format_value, shown
from utils.cli.help import help_text
from utils.cli.settings import MODES, Program, Settings
from utils.errors import UserError, did_you_mean, one_line_text
from utils.launcher import launcher_defaults
from utils.mpi import adopt_mpi_ranks

C = TypeVar("C")


def parse(program: Program[C], argv: Sequence[str] | None = None) -> Settings[C]:
    """The settings of a command line; argv: default sys.argv[1:]. --help prints and exits 0. UserError: one line."""
    adopt_mpi_ranks()
    typed = _read_command_line(program, sys.argv[1:] if argv is None else list(argv))
    settings = Settings(program)
    config: dict[str, Any] = {}
    pairs: dict[str, Any] = {}  # --config NAME=VALUE, which is how flags of --config alone are typed
    if "config" in typed:
        arguments = typed.pop("config")
        for argument in arguments:
            read = read_config_argument(program, argument)
            config |= read
            pairs |= read if "=" in argument and not os.path.exists(argument) else {}
        typed["config"] = " ".join(arguments) or None
    asked = {**config, **typed}
    _apply(settings, {n: v for n, v in launcher_defaults().items() if n in program.flags}, "launcher")
    _apply(settings, config, "config")

    mode = _mode(program, asked)
    if mode:
        folder = Path(asked["resume_dir"])
        settings.checkpoint_args = read_args(folder)
        saved = saved_flags(program, settings.checkpoint_args, folder)
        typed |= {n: v for n, v in pairs.items() if _may_be_typed(program.flags[n], mode)}
        _refuse_changes(program, typed, saved, folder, mode)
        _note_overridden(config, typed, saved, folder)
        _apply(settings, saved, "saved")
    _apply(settings, typed, "flag")

    for rule in program.rules:
        rule(settings)
    return settings


def check_flags(
    program: Program[C], argv: Sequence[str], rules: Iterable[Callable[[Settings[Any]], None]] = ()
) -> Settings[C]:
    """The settings of a command line that will be run later. UserError for an unknown flag or an impossible value.

    rules: the rules of the program that are obeyed, too; others may read folders that are not there yet.
    """
    typed, settings = _read_command_line(program, list(argv)), Settings(program)
    for argument in typed.pop("config", []):
        _apply(settings, read_config_argument(program, argument), "config")
    _apply(settings, typed, "flag")
    for rule in rules:
        rule(settings)
    return settings


def _may_be_typed(flag: Flag, mode: str) -> bool:
    return flag.config_only and flag.may_change_at(mode)


def _apply(settings: Settings[Any], values: Mapping[str, Any], source: str) -> None:
    for name, value in values.items():
        settings.set(name, value, source=source)


def _mode(program: Program[Any], asked: Mapping[str, Any]) -> str | None:
    """The flag of this invocation that reads args.json, or None."""
    modes = [m for m in MODES if asked.get(m)]
    if "resume_training" in modes and len(modes) > 1:
        raise UserError(
            f"--{modes[0]} and --resume_training exclude each other: evaluate first, or go on training first"
        )
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} exclude each other: do one, then the other")
    if modes and asked.get("resume_dir") is None:
        raise UserError(f"--{modes[0]} needs --resume_dir: name the run folder, the one that holds args.json")
    return modes[0] if modes else None


_ACTIVITIES = {
    "eval": "an evaluation",
    "eval_test": "an evaluation",
    "gen_data": "the generation of data",
    "resume_training": "resumed training",
}


def _refuse_changes(
    program: Program[Any], typed: Mapping[str, Any], saved: Mapping[str, Any], folder: Path, mode: str
) -> None:
    for name, value in typed.items():
        if name in saved and not program.flags[name].may_change_at(mode) and value != saved[name]:
            raise UserError(
                f"--{name} {format_value(value)} differs from {format_value(saved[name])}, with which {folder} was "
                f"trained, and {_ACTIVITIES[mode]} cannot change it: leave it out, or train another run"
            )


def _note_overridden(
    config: Mapping[str, Any], typed: Mapping[str, Any], saved: Mapping[str, Any], folder: Path
) -> None:
    for name, value in config.items():
        if name in saved and name not in typed and value != saved[name]:
            note = (
                f"note: {name} of --config has no effect: args.json of {folder} has {format_value(saved[name])}; only "
                "a typed flag overrides it"
            )
            print(one_line_text(note), file=sys.stderr)


# -------------------------------------------------------------------------------------------------------- command line


def _read_command_line(program: Program[Any], argv: list[str]) -> dict[str, Any]:
    """Typed values by flag name, converted. The last of a repeated flag counts."""
    typed: dict[str, Any] = {}
    tokens = list(reversed(argv))
    previous: Flag | None = None
    while tokens:
        token = tokens.pop()
        if token in ("-h", "--help"):
            print(help_text(program))
            raise SystemExit(0)
        if not token.startswith("--") or token == "--":
            raise UserError(_unexpected(program, token, previous))
        spelled, equals, attached = token[2:].partition("=")
        name, negated = _resolve(program, spelled)
        if name in program.rejected:
            raise UserError(f"--{name} {program.rejected[name]}")
        if name in program.deprecated and name not in program.flags:
            if not equals and tokens and not tokens[-1].startswith("--"):
                tokens.pop()  # its value
            print(f"note: --{name} has no effect: {program.deprecated[name]}", file=sys.stderr)
            continue
        previous = flag = program.flags[name]
        if flag.config_only:
            raise UserError(f"--{name} is set by --config only: type --config {name}=VALUE, or write it into a file")
        value: Any
        if flag.type is bool:
            value = attached if equals else True
        elif equals:
            value = attached
        elif tokens and not (tokens[-1].startswith("--") and len(tokens[-1]) > 2):
            value = tokens.pop()
        else:
            raise UserError(f"--{name} expects {expected(flag)}, and nothing follows it")
        try:
            value = convert(flag, value)
        except ValueError as error:
            raise UserError(f"--{name} {error}") from None
        if name == "config":  # may be repeated; a later one takes precedence
            typed.setdefault(name, []).extend([] if value is None else [value])  # --config none: without one
            continue
        typed[name] = value
        if negated:
            typed[name] = not typed[name]
    return typed


def _unexpected(program: Program[Any], token: str, previous: Flag | None) -> str:
    """The message for an argument that is neither a flag nor the value of one. previous: the flag before it."""
    text = shown(token)
    if not token.strip():
        return f"unexpected argument {text}: is there a blank after a backslash at the end of a line?"
    if previous is not None and previous.type is bool and token.strip().lower() in (*TRUE, *FALSE):
        off = token.strip().lower() in FALSE
        wanted = f"--{'no_' if off else ''}{previous.name}"
        switched = "off" if off else "on"
        return f"unexpected argument {text}: no value follows --{previous.name}; type {wanted} to switch it {switched}"
    bare = token.lstrip("-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d")
    if bare != token:
        known = program.flags.keys() | program.deprecated.keys()
        guess = f"--{bare}" if bare.partition("=")[0] in known else "--NAME"
        return f"unexpected argument {text}: a flag begins with two hyphens, as in {guess}; --help lists all flags"
    return (
        f"unexpected argument {text}: every value follows its --flag, and one with blanks is put in quotation marks; "
        "see --help"
    )


def _resolve(program: Program[Any], spelled: str) -> tuple[str, bool]:
    """The flag that a spelling means, and whether --no_ switched it off. Published flags may be abbreviated."""
    known = program.flags.keys() | program.deprecated.keys() | program.rejected.keys()
    if spelled in known:
        return spelled, False
    positive = spelled.removeprefix("no_")
    if positive != spelled and positive in program.flags and program.flags[positive].type is bool:
        return positive, True
    published = [n for n, flag in program.flags.items() if flag.published] + list(program.deprecated)
    candidates = sorted(n for n in published if n.startswith(spelled)) if spelled and program.abbreviates else []
    if len(candidates) == 1:
        return candidates[0], False
    if candidates:
        raise UserError(f"--{spelled} is ambiguous between {', '.join('--' + c for c in candidates)}: type more of it")
    raise UserError(f"unknown flag --{one_line_text(spelled)}{_suggest_flag(spelled, known)}; --help lists all flags")


def _suggest_flag(spelled: str, known: Iterable[str]) -> str:
    spelled = spelled.replace("-", "_").lower()
    known = sorted(known)  # a set has another order in every process
    extended = [n for n in known if spelled and n.startswith(spelled)]
    return f" (did you mean --{extended[0]}?)" if extended else did_you_mean(spelled, known, "--")

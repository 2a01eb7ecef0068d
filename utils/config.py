"""The settings of a command line, and which source counts. A flag is a field of an options dataclass (utils.flags).

Where a value comes from, each source over the one before:

    1. defaults of the dataclasses, then of the program
    2. --config FILE (YAML or JSON)
    3. args.json of --resume_dir, with --eval, --eval_test, --gen_data or --resume_training
    4. flags typed on the command line

Then the rules of the program. Imports no torch, nor does any module here of which it is made, so that --help is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, fold
from utils.flag_files import read_args, read_config, saved_flags
from utils.flags import convert, expected, near, shown
from utils.help_text import help_text
from utils.settings import INVOCATION, MODES, Program, Settings


def parse(program: Program, argv: Sequence[str] | None = None) -> Settings:
    """The settings of a command line (sys.argv without one). --help prints and exits 0. UserError: one line."""
    typed = _read_command_line(program, sys.argv[1:] if argv is None else list(argv))
    settings = Settings(program)
    asked = {**typed}

    config: dict[str, Any] = {}
    if typed.get("config") is not None:
        config = read_config(program, Path(typed["config"]))
        asked = {**config, **typed}
    _apply(settings, config, "config")

    mode = _mode(program, asked)
    if mode:
        folder = Path(asked["resume_dir"])
        free = INVOCATION | (program.free_at_resume if mode == "resume_training" else program.free_at_evaluation)
        settings.saved = read_args(folder)
        saved = saved_flags(program, settings.saved, folder)
        _refuse_changes(typed, saved, free, folder, mode)
        _note_overridden(config, typed, saved, folder)
        _apply(settings, saved, "saved")
    _apply(settings, typed, "flag")

    for rule in program.rules:
        rule(settings)
    return settings


def _apply(settings: Settings, values: Mapping[str, Any], source: str) -> None:
    for name, value in values.items():
        settings.set(name, value, source=source)


def _mode(program: Program, asked: Mapping[str, Any]) -> str | None:
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


_DEEDS = {"eval": "evaluating", "eval_test": "evaluating", "gen_data": "generating", "resume_training": "resuming"}


def _refuse_changes(
    typed: Mapping[str, Any], saved: Mapping[str, Any], free: frozenset[str], folder: Path, mode: str
) -> None:
    for name, value in typed.items():
        if name in saved and name not in free and value != saved[name]:
            raise UserError(
                f"--{name} {shown(value)} differs from {shown(saved[name])}, what {folder} was trained with: "
                f"it is fixed when {_DEEDS[mode]}; leave it out, or train another run"
            )


def _note_overridden(
    config: Mapping[str, Any], typed: Mapping[str, Any], saved: Mapping[str, Any], folder: Path
) -> None:
    for name, value in config.items():
        if name in saved and name not in typed and value != saved[name]:
            print(f"note: {name} of --config has no effect: args.json of {folder} says {shown(saved[name])}; "
                  f"a typed flag would count", file=sys.stderr)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- command line


def _read_command_line(program: Program, argv: list[str]) -> dict[str, Any]:
    """Typed values by flag name, converted. The last of a repeated flag counts."""
    typed: dict[str, Any] = {}
    tokens = list(reversed(argv))
    while tokens:
        token = tokens.pop()
        if token in ("-h", "--help"):
            print(help_text(program))
            raise SystemExit(0)
        if not token.startswith("--") or token == "--":
            hint = " (a blank after a backslash at the end of a line?)" if not token.strip() else ""
            raise UserError(
                f"unexpected argument {fold(repr(token))}{hint}: every value follows its --flag; see --help"
            )
        spelled, equals, attached = token[2:].partition("=")
        name, negated = _resolve(program, spelled)
        if name in program.refused:
            raise UserError(f"--{name} {program.refused[name]}")
        if name in program.ignored and name not in program.flags:
            if not equals and tokens and not tokens[-1].startswith("--"):
                tokens.pop()  # its value
            print(f"note: --{name} has no effect: {program.ignored[name]}", file=sys.stderr)
            continue
        flag = program.flags[name]
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
            typed[name] = convert(flag, value)
        except ValueError as error:
            raise UserError(f"--{name} {error}") from None
        if negated:
            typed[name] = not typed[name]
    return typed


def _resolve(program: Program, spelled: str) -> tuple[str, bool]:
    """The flag that a spelling means, and whether --no_ switched it off. Prefixes reach reference flags only."""
    known = program.flags.keys() | program.ignored.keys() | program.refused.keys()
    if spelled in known:
        return spelled, False
    positive = spelled.removeprefix("no_")
    if positive != spelled and positive in program.flags and program.flags[positive].type is bool:
        return positive, True
    candidates = sorted(n for n in program.reference_flags if n.startswith(spelled)) if spelled else []
    if len(candidates) == 1:
        return candidates[0], False
    if candidates:
        raise UserError(f"--{spelled} may mean {', '.join('--' + c for c in candidates)}: type more of it")
    raise UserError(f"unknown flag --{fold(spelled)}{_near_flag(spelled, known)}; --help lists them all")


def _near_flag(spelled: str, known: Iterable[str]) -> str:
    spelled = spelled.replace("-", "_").lower()
    known = sorted(known)  # a set has another order in every process
    extended = [n for n in known if spelled and n.startswith(spelled)]
    return f" (did you mean --{extended[0]}?)" if extended else near(spelled, known).replace("mean ", "mean --")

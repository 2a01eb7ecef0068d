"""Flags, configuration files and args.json. A flag is a field of an options dataclass beside the part it configures.

A program names its dataclasses; from them come the parser, --help, the checks and the record of the run. Where a value
comes from, each source over the one before:

    1. defaults of the dataclasses, then of the program
    2. --config FILE (YAML or JSON)
    3. args.json of --resume_dir, with --eval, --eval_test, --gen_data or --resume_training
    4. flags typed on the command line

Metadata of a field: help; unit; choices (letter case is ignored, the table's is stored); aliases (another spelling -> a
choice); at_least, at_most (bounds of a number). Knows nothing of what the flags mean, and imports no torch, so that
--help is quick.
"""

from __future__ import annotations

import json
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.errors import UserError, fold

SCHEMA_VERSION = 1

# What belongs to one invocation and not to a trained run: never taken from args.json, always free to type.
INVOCATION = frozenset({
    "eval", "eval_test", "gen_data", "resume_training", "resume_dir", "output_dir", "save_dir", "config", "dry_run",
    "max_seconds", "device", "wandb", "wandb_name",
})  # fmt: skip
MODES = ("eval", "eval_test", "gen_data", "resume_training")  # these read args.json of --resume_dir
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


# ------------------------------------------------------------------------------------------------------------ programs


@dataclass(frozen=True)
class Flag:
    """One field of an options dataclass, as a flag."""

    name: str
    type: type  # bool, int, float or str
    optional: bool  # the value may be None, typed as "none"
    default: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> Sequence[str] | None:
        return self.metadata.get("choices")


@dataclass(frozen=True)
class Program:
    """What one entry script accepts. The sets name fields, without dashes."""

    name: str
    description: str
    groups: Mapping[str, type]  # heading of --help -> options dataclass
    defaults: Mapping[str, Any] = field(default_factory=dict)  # this program's over those of the dataclasses
    reference_flags: frozenset[str] = frozenset()  # only these may be abbreviated, as argparse did
    ignored: Mapping[str, str] = field(default_factory=dict)  # old flags without effect -> why, said in one line
    free_at_evaluation: frozenset[str] = frozenset()  # may differ from args.json with --eval and --eval_test
    free_at_resume: frozenset[str] = frozenset()  # may differ from args.json with --resume_training
    rules: tuple[Callable[[Settings], None], ...] = ()  # flags that meet: each may fill in or refuse values

    def __post_init__(self) -> None:
        unknown: Set[str] = (set(self.defaults) | self.free_at_evaluation | self.free_at_resume) - set(self.flags)
        assert not unknown, f"{self.name} names flags that no dataclass of it has: {sorted(unknown)}"
        unknown = self.reference_flags - set(self.flags) - set(self.ignored)
        assert not unknown, f"{self.name} neither has nor ignores these flags of the reference: {sorted(unknown)}"

    @cached_property
    def flags(self) -> dict[str, Flag]:
        """Every flag by name. A field that two groups share must be the same in both."""
        found: dict[str, Flag] = {}
        for heading, options in self.groups.items():
            hints = typing.get_type_hints(options)
            for f in fields(options):
                flag = _flag(f, hints[f.name])
                assert found.setdefault(f.name, flag) == flag, (
                    f"--{f.name} of {heading} differs from an earlier group's"
                )
        return {n: _check_default(Flag(f.name, f.type, f.optional, self.defaults.get(n, f.default), f.metadata))
                for n, f in found.items()}  # fmt: skip


def _flag(f: Field, hint: Any) -> Flag:
    arguments = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [a for a in arguments if a is not type(None)]
    assert len(kinds) == 1 and kinds[0] in (bool, int, float, str), (
        f"--{f.name} has the type {hint}: no flag can hold it"
    )
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    assert default is not MISSING, f"--{f.name} has no default"
    return Flag(f.name, kinds[0], type(None) in arguments, default, dict(f.metadata))


def _check_default(flag: Flag) -> Flag:
    try:
        convert(flag, flag.default)
    except ValueError as error:
        raise AssertionError(f"the default of --{flag.name} is not valid: {error}") from error
    return flag


# -------------------------------------------------------------------------------------------------------------- values


def convert(flag: Flag, value: Any) -> Any:
    """A typed string, or a value of a file, as what the flag holds. ValueError: what was expected instead."""
    if value is None or (flag.optional and isinstance(value, str) and value.lower() in ("none", "null")):
        if flag.optional:
            return None
        raise ValueError(f"expects {_expected(flag)}, not nothing")
    try:
        result = _CONVERTERS[flag.type](value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"expects {_expected(flag)}, not {fold(repr(value))}") from None
    if flag.choices:
        result = _choice(flag, result)
    low, high = flag.metadata.get("at_least"), flag.metadata.get("at_most")
    if (low is not None and result < low) or (high is not None and result > high):
        bounds = " and ".join(f"{w} {b}" for w, b in (("at least", low), ("at most", high)) if b is not None)
        raise ValueError(f"must be {bounds}, not {result}")
    return result


def _choice(flag: Flag, value: Any) -> Any:
    choices = flag.choices or ()
    table = {str(k).lower(): v for k, v in flag.metadata.get("aliases", {}).items()}
    table |= {str(c).lower(): c for c in choices}
    if str(value).lower() in table:
        return table[str(value).lower()]
    raise ValueError(
        f"must be one of {', '.join(map(str, choices))}, not {fold(repr(value))}{_near(str(value), table)}"
    )


def _bool(value: Any) -> bool:
    text = str(value).lower()
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError
    try:
        return int(value) if not isinstance(value, float) else _whole(value)
    except ValueError:
        return _whole(float(value))  # 1e5


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _str(value: Any) -> str:
    if isinstance(value, (bool, list, dict)):
        raise ValueError
    return str(value)


_CONVERTERS: dict[type, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str}
_NOUNS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def _expected(flag: Flag) -> str:
    unit = flag.metadata.get("unit")
    return _NOUNS[flag.type] + (f" ({unit})" if unit else "") + (", or none" if flag.optional else "")


def _near(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


# ------------------------------------------------------------------------------------------------------------ settings


class Settings:
    """The values of one run, by flag name: settings.tx_dim. Changed only by rules, through set()."""

    def __init__(self, program: Program):
        self.program = program
        self.values: dict[str, Any] = {name: convert(f, f.default) for name, f in program.flags.items()}
        self.sources: dict[str, str] = dict.fromkeys(program.flags, "default")  # default, config, saved, flag or rule
        self.saved: dict[str, Any] = {}  # args.json as it was read, with the facts that are no flags; empty: not read

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(f"{name} is not a flag of this program") from None

    @property
    def typed(self) -> frozenset[str]:
        """What was asked for in so many words: typed, or in --config and not overridden by args.json."""
        return frozenset(n for n, source in self.sources.items() if source in ("flag", "config"))

    @property
    def from_reference(self) -> bool:
        """Whether args.json was written by the reference code and not by us."""
        return bool(self.saved) and "schema_version" not in self.saved

    def set(self, name: str, value: Any, *, source: str = "rule") -> None:
        """Give a flag a value, checked like a typed one."""
        assert name in self.program.flags, f"{self.program.name} has no flag --{name}"
        try:
            self.values[name] = convert(self.program.flags[name], value)
        except ValueError as error:
            raise UserError(f"--{name} {error}") from None
        self.sources[name] = source

    def build(self, options: type) -> Any:
        """An instance of an options dataclass from these values."""
        return options(**{f.name: self.values[f.name] for f in fields(options)})

    def as_dict(self) -> dict[str, Any]:
        """Flat, and ready for JSON."""
        return dict(self.values)

    def describe(self) -> str:
        """The resolved configuration by group; what is not a default says where it came from."""
        lines, seen = [], set()
        width = max(map(len, self.values), default=0)
        for heading, options in self.program.groups.items():
            names = [f.name for f in fields(options) if f.name not in seen]
            seen.update(names)
            lines += [heading] if names else []
            for name in names:
                origin = "" if self.sources[name] == "default" else f"  ({self.sources[name]})"
                lines.append(f"  {name:<{width}}  {_shown(self.values[name])}{origin}")
        return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return str(value)


# ------------------------------------------------------------------------------------------------------------- parsing


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
        saved = _saved_flags(program, settings.saved, folder)
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
    if modes and asked.get("resume_dir") is None:
        raise UserError(f"--{modes[0]} needs --resume_dir: name the run folder, the one that holds args.json")
    return modes[0] if modes else None


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
            raise UserError(f"--{name} expects {_expected(flag)}, and nothing follows it")
        try:
            typed[name] = convert(flag, value)
        except ValueError as error:
            raise UserError(f"--{name} {error}") from None
        if negated:
            typed[name] = not typed[name]
    return typed


def _resolve(program: Program, spelled: str) -> tuple[str, bool]:
    """The flag that a spelling means, and whether --no_ switched it off. Prefixes reach reference flags only."""
    known = program.flags.keys() | program.ignored.keys()
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
    known = list(known)
    extended = [n for n in known if spelled and n.startswith(spelled)]
    return f" (did you mean --{extended[0]}?)" if extended else _near(spelled, known).replace("mean ", "mean --")


# --------------------------------------------------------------------------------------------------------------- files


def _read_mapping(path: Path, what: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot read {what}: {reason}") from None
    try:
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            import yaml

            data = yaml.safe_load(text)
    except Exception as error:  # of two parsers
        raise UserError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {fold(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise UserError(f"{path}: {what} must be a table of names and values")
    return data


def read_config(program: Program, path: Path) -> dict[str, Any]:
    """Flags of a configuration file: flat, or grouped by the headings of --help. Or another run's args.json."""
    data = _read_mapping(path, "the configuration")
    recorded = "schema_version" in data  # an args.json: it also holds facts, and flags of that invocation
    headings = {h.lower() for h in program.groups}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and not recorded:
            if key.lower() not in headings:
                raise UserError(f"{path}: no group of flags is called {key!r}{_near(key, program.groups)}")
            flat.update(value)
        else:
            flat[key] = value
    if recorded:
        flat = {k: v for k, v in flat.items() if k in program.flags and k not in INVOCATION}
    result = {}
    for key, value in flat.items():
        if key in program.ignored and key not in program.flags:
            print(f"note: {key} in {path} has no effect: {program.ignored[key]}", file=sys.stderr)
            continue
        if key not in program.flags or key == "config":
            raise UserError(f"{path}: {program.name} has no flag {key!r}{_near(str(key), program.flags)}")
        try:
            result[key] = convert(program.flags[key], value)
        except ValueError as error:
            raise UserError(f"{path}: {key} {error}") from None
    return result


def read_args(folder: Path) -> dict[str, Any]:
    """args.json of a run folder: ours, or one of the reference (no schema_version)."""
    path = Path(folder) / "args.json"
    if not path.is_file():
        found = "there is no such folder" if not Path(folder).is_dir() else "it holds no args.json"
        raise UserError(f"{folder} is not a run folder: {found}")
    data = _read_mapping(path, "the arguments of the run")
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer release (schema {version}, this one reads {SCHEMA_VERSION}): update"
        )
    if not data:
        raise UserError(f"{path} is empty: restore it, or train again")
    return data


def _saved_flags(program: Program, saved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The flags among what args.json holds. What no flag is called is a fact of the run, or of another release."""
    result = {}
    for key, value in saved.items():
        if key not in program.flags or key in INVOCATION:
            continue
        try:
            result[key] = convert(program.flags[key], value)
        except ValueError as error:
            raise UserError(f"{folder / 'args.json'}: {key} {error}") from None
    return result


_DEEDS = {"eval": "evaluating", "eval_test": "evaluating", "gen_data": "generating", "resume_training": "resuming"}


def _refuse_changes(
    typed: Mapping[str, Any], saved: Mapping[str, Any], free: frozenset[str], folder: Path, mode: str
) -> None:
    for name, value in typed.items():
        if name in saved and name not in free and value != saved[name]:
            raise UserError(
                f"--{name} {_shown(value)} differs from {_shown(saved[name])}, what {folder} was trained with: "
                f"it is fixed when {_DEEDS[mode]}; leave it out, or train another run"
            )


def _note_overridden(
    config: Mapping[str, Any], typed: Mapping[str, Any], saved: Mapping[str, Any], folder: Path
) -> None:
    for name, value in config.items():
        if name in saved and name not in typed and value != saved[name]:
            print(f"note: {name} of --config has no effect: args.json of {folder} says {_shown(saved[name])}; "
                  f"a typed flag would count", file=sys.stderr)  # fmt: skip


def write_args(settings: Settings, folder: Path | str, **facts: Any) -> Path:
    """Write args.json: the flags, flat, and what is known of the run. An evaluation never overwrites it.

    facts: anything JSON holds that no flag is called, e.g. device_name, trainable_params. Atomic.
    """
    from utils.runs import git_commit, package_versions, write_json

    clash = facts.keys() & settings.values.keys()
    assert not clash, f"these facts are called like flags: {sorted(clash)}"
    path = Path(folder) / "args.json"
    evaluates = any(settings.values.get(mode) for mode in MODES if mode != "resume_training")
    if path.exists() and evaluates:
        return path
    known = {
        "schema_version": SCHEMA_VERSION,
        "program": settings.program.name,
        "git_commit": git_commit(),
        "package_versions": package_versions(),
        "seed": settings.values.get("random_seed"),
    }
    write_json(path, {**settings.as_dict(), **known, **facts})
    return path


# ---------------------------------------------------------------------------------------------------------------- help


def help_text(program: Program) -> str:
    """--help: every flag under its heading, with what it takes, its default and unit."""
    import shutil
    import textwrap

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
    default = f"default: {_shown(flag.default)}" + (f" {unit}" if unit and flag.default is not None else "")
    unit_of_none = f"; unit: {unit}" if unit and flag.default is None else ""
    return f"{flag.metadata.get('help', '')}{choices} [{default}{unit_of_none}]"

"""What a program accepts (Program) and the values of one run of it (Settings).

A program names its options dataclasses; from them come the parser, --help, the checks and the record of the run. Knows
nothing of what the flags mean, and nothing of where values come from (utils.config).
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from utils.errors import UserError
from utils.flags import Flag, convert, flag_of, shown

# What belongs to one invocation and not to a trained run: never taken from args.json, always free to type.
INVOCATION = frozenset({
    "eval", "eval_test", "gen_data", "resume_training", "resume_dir", "output_dir", "save_dir", "config", "dry_run",
    "max_seconds", "device", "wandb", "wandb_name",
})  # fmt: skip
MODES = ("eval", "eval_test", "gen_data", "resume_training")  # these read args.json of --resume_dir


@dataclass(frozen=True)
class Program:
    """What one entry script accepts. The sets name fields, without dashes."""

    name: str
    description: str
    groups: Mapping[str, type]  # heading of --help -> options dataclass
    defaults: Mapping[str, Any] = field(default_factory=dict)  # this program's over those of the dataclasses
    reference_flags: frozenset[str] = frozenset()  # only these may be abbreviated, as argparse did
    ignored: Mapping[str, str] = field(default_factory=dict)  # old flags without effect -> why, said in one line
    refused: Mapping[str, str] = field(default_factory=dict)  # flags of other programs -> why not of this one
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
                flag = flag_of(f, hints[f.name])
                assert found.setdefault(f.name, flag) == flag, (
                    f"--{f.name} of {heading} differs from an earlier group's"
                )
        return {n: _check_default(Flag(f.name, f.type, f.optional, self.defaults.get(n, f.default), f.metadata))
                for n, f in found.items()}  # fmt: skip


def _check_default(flag: Flag) -> Flag:
    try:
        convert(flag, flag.default)
    except ValueError as error:
        raise AssertionError(f"the default of --{flag.name} is not valid: {error}") from error
    return flag


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
                lines.append(f"  {name:<{width}}  {shown(self.values[name])}{origin}")
        return "\n".join(lines)

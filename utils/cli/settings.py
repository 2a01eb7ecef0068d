"""The flags that a program accepts (Program) and their values in one run of it (Settings).

A program's config is a dataclass of option groups:

    @dataclass
    class DiffusionConfig(TrainingConfig):
        sampling: SamplingOptions = group(SamplingOptions, "sampling", may_change="eval")

The parser, --help, the checks and the record of a run follow from it. Command lines are flat: a flag's name lies in
one group of a program. This module depends neither on the meaning of flags nor on the sources of their values
(utils.cli.parse).
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from utils.cli.flags import Flag, convert, flag_from, format_value
from utils.errors import UserError

C = TypeVar("C", covariant=True)  # the config of a program
O = TypeVar("O")  # noqa: E741  an options dataclass
MODES = ("eval", "eval_test", "gen_data", "resume_training")  # these read args.json of --resume_dir


def group(options: type[O], heading: str, /, *, flags: Mapping[str, Any] | None = None, **defaults: Any) -> O:
    """A field of a config that holds an option group.

    heading: its title in --help, and its name in a grouped --config file. flags: attributes of utils.cli.flags.Flag
    that hold for every flag of the group that declares no other, such as dict(space="embeddings"). defaults: this
    program's defaults over those of the options.
    """
    made: O = field(
        default_factory=lambda: options(**defaults),
        metadata=dict(options=options, heading=heading, flags=flags or {}, defaults=defaults),
    )
    return made


def groups_of_rows(
    rows: Mapping[str, type | None], kind: str, *, flags: Mapping[str, Any] | None = None
) -> Callable[[type[O]], type[O]]:
    """A decorator of a config, above @dataclass: adds an option group for every row of a table that has options.

    rows: name -> options dataclass, or None. kind: name of the kind of rows, for headings. flags: see group. Options
    that the config declares itself are not added. Added options are read by name, with Settings.get.
    """

    def decorate(config: type[O]) -> type[O]:
        declared = {f.metadata["options"] for f in fields(config)}  # type: ignore[arg-type]
        added: dict[type, str] = {}
        for name, options in rows.items():
            if options is not None and options not in declared:
                added.setdefault(options, name)
        if not added:
            return config
        made: list[tuple[str, type, Any]] = [
            (f"{name}_options", o, group(o, f"{kind} {name}", flags=flags)) for o, name in added.items()
        ]
        return make_dataclass(config.__name__, made, bases=(config,), namespace={"__doc__": config.__doc__})

    return decorate


@dataclass(frozen=True)
class Program(Generic[C]):
    """The command line of one entry script."""

    name: str
    description: str
    config: type[C]
    abbreviates: bool = False  # whether its published flags may be abbreviated, as argparse did
    # published flags without effect here -> the reason, or the flag to use instead
    deprecated: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)  # flags of other programs -> why this has none
    rules: tuple[Callable[[Settings[Any]], None], ...] = ()  # each may fill in, or refuse, values that depend on others

    def __post_init__(self) -> None:
        assert self.flags  # finds a flag of two groups, and a default that is not valid, as soon as a program is made

    @cached_property
    def groups(self) -> dict[str, type]:
        """Options dataclasses by heading."""
        return {f.metadata["heading"]: f.metadata["options"] for f in fields(self.config)}  # type: ignore[arg-type]

    @cached_property
    def group_of(self) -> dict[str, str]:
        """The attribute of the config that holds a flag, by the flag's name."""
        return {
            option.name: f.name
            for f in fields(self.config)  # type: ignore[arg-type]
            for option in fields(f.metadata["options"])
        }

    @cached_property
    def flags(self) -> dict[str, Flag]:
        """Every flag by name."""
        found: dict[str, Flag] = {}
        for f in fields(self.config):  # type: ignore[arg-type]
            options, defaults = f.metadata["options"], f.metadata["defaults"]
            hints = typing.get_type_hints(options)
            for option in fields(options):
                assert option.name not in found, f"--{option.name} lies in two groups of {self.name}"
                default = defaults.get(option.name, option.default)
                found[option.name] = flag_from(option, hints[option.name], default, f.metadata["flags"])
        return found


class Settings(Generic[C]):
    """The values of one run. Code reads them from `config`, which is typed; only rules change them, by set()."""

    def __init__(self, program: Program[C]) -> None:
        self.program = program
        self.config = program.config()
        for f in fields(self.config):  # type: ignore[arg-type]  # a default of 2 for a float becomes 2.0
            names = [option.name for option in fields(f.metadata["options"])]
            values = {name: convert(program.flags[name], program.flags[name].default) for name in names}
            setattr(self.config, f.name, f.metadata["options"](**values))
        # source of each value: default, launcher, config, saved, flag, rule or device (utils.precision)
        self.origins: dict[str, str] = dict.fromkeys(program.flags, "default")
        self.checkpoint_args: dict[str, Any] = {}  # all of args.json of the run, not only flags; empty: not read

    @property
    def explicit(self) -> frozenset[str]:
        """Flags that the user gave: typed, or in --config and not overridden by args.json."""
        return frozenset(n for n, source in self.origins.items() if source in ("flag", "config"))

    @property
    def values(self) -> dict[str, Any]:
        """A copy of all values by flag name, for loops over flags and for records."""
        return {name: getattr(getattr(self.config, g), name) for name, g in self.program.group_of.items()}

    @property
    def mode(self) -> str | None:
        """The flag of this invocation that uses the run in --resume_dir: eval, eval_test, gen_data, resume_training."""
        return next((mode for mode in MODES if mode in self.program.flags and self.get(mode)), None)

    def get(self, name: str) -> Any:
        """The value of a flag whose name is determined at run time."""
        return getattr(getattr(self.config, self.program.group_of[name]), name)

    def path(self, name: str) -> Path:
        """The folder or file of a flag that is required by the rules."""
        value = self.get(name)
        assert value is not None, f"--{name} is not given"
        return Path(value)

    def set(self, name: str, value: Any, *, source: str = "rule") -> None:
        """Set the value of a flag. Raises UserError for a value that would be an error on the command line."""
        assert name in self.program.flags, f"{self.program.name} has no flag --{name}"
        try:
            value = convert(self.program.flags[name], value)
        except ValueError as error:
            raise UserError(f"--{name} {error}") from None
        holder = self.program.group_of[name]
        setattr(self.config, holder, replace(getattr(self.config, holder), **{name: value}))
        self.origins[name] = source

    def as_dict(self) -> dict[str, Any]:
        """The values by flag name, ready for JSON."""
        return self.values

    def describe(self) -> str:
        """The resolved configuration by group, with the source of each value that is not a default."""
        lines = []
        width = max(map(len, self.origins), default=0)
        for heading, options in self.program.groups.items():
            lines.append(heading)
            for f in fields(options):
                origin = "" if self.origins[f.name] == "default" else f"  ({self.origins[f.name]})"
                lines.append(f"  {f.name:<{width}}  {format_value(self.get(f.name))}{origin}")
        return "\n".join(lines)

"""A flag: a field of an options dataclass that declares everything about it, and the conversion of its value.

    sampling_timesteps: int = flag(250, "steps of the reverse process", unit="steps", at_least=1, published=True)

All properties of a flag are declared only there: the parser, --help, the checks, the record of a run, the rules of
distillation and those of latent spaces all read it. This module depends on no program or command line. The only
files that it reads are the sources of tables whose keys are the choices of a flag (table_keys).
"""

from __future__ import annotations

import ast
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from utils.errors import did_you_mean, one_line_text

T = TypeVar("T")
MayChange = Literal["never", "eval", "resume", "both", "invocation"]
Needs = str | tuple[Any, ...]
Student = Literal["inherits", "may_differ", "unused", "sampling", "grid"]
ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the packages
LARGEST = 2**63 - 1  # the largest whole number that tensors hold
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Flag:
    """One field of an options dataclass, as a flag of a program."""

    name: str
    type: type  # bool, int, float or str
    optional: bool  # the value may be None, typed as "none"
    default: Any
    help: str = ""
    unit: str | None = None  # a unit, as in "steps" or "seconds"; for --help and messages only
    choices: Sequence[str] | None = None  # letter case is ignored; stored in the spelling used here
    aliases: Mapping[str, str] = field(default_factory=dict)  # another spelling -> a choice
    at_least: float | None = None
    above: float | None = None  # an exclusive lower bound
    at_most: float | None = None
    # The flag without which this one has no effect: its name (it must be on, above 0, or not None), or its name and the
    # values with which this one has an effect, as in ("time_grid", "shifted").
    needs: Needs | None = None
    # When the flag may differ from the args.json of --resume_dir: at an evaluation, when training resumes, at both, or
    # never. "invocation": the flag is never read from args.json.
    may_change: MayChange = "never"
    # Value in a run with --distill_run. "inherits": the teacher's, and another one is an error. "may_differ": the
    # teacher's unless another one is explicit. "unused", "sampling": giving the flag is an error, as --distill_steps
    # sets the times of training and sampling. "grid": the student's own value, unless its teacher is a student, too.
    # None: as in any run.
    student: Student | None = None
    space: Literal["embeddings", "frozen"] | None = None  # the latent spaces to which the flag applies; None: all
    published: bool = False  # a flag of the published systems, which may be abbreviated as argparse does it
    config_only: bool = False  # accepted in a --config file, not on the command line
    none_is_text: bool = False  # the text "none" is a value, different from None

    def may_change_at(self, mode: str) -> bool:
        """Whether the flag may differ from args.json; mode: "resume_training", or one of the evaluations."""
        now = "resume" if mode == "resume_training" else "eval"
        return self.may_change in (now, "both", "invocation")

    @property
    def needed(self) -> tuple[str, tuple[Any, ...]] | None:
        """The name of the needed flag and the values that meet the need; no values: any value that switches it on."""
        if self.needs is None:
            return None
        return (self.needs, ()) if isinstance(self.needs, str) else (self.needs[0], tuple(self.needs[1:]))


def flag(
    default: T,
    help: str,
    *,
    unit: str | None = None,
    choices: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    needs: Needs | None = None,
    may_change: MayChange | None = None,
    student: Student | None = None,
    space: Literal["embeddings", "frozen"] | None = None,
    published: bool | None = None,
    config_only: bool | None = None,
    none_is_text: bool | None = None,
) -> T:
    """A field of an options dataclass that is a flag; the arguments are the attributes of Flag.

    Attributes that are not given come from the group in the program's config (utils.cli.settings.group), else from the
    defaults of Flag.
    """
    declared = {k: v for k, v in locals().items() if k != "default" and v is not None}
    made: T = field(default=default, metadata=declared)
    return made


@cache
def table_keys(module: str, table: str) -> tuple[str, ...]:
    """The keys of a module-level dict of literal keys, in its order, as the choices of a flag.

    module: dotted name, as in "diffusion.samplers". The source is parsed and not imported: a table of samplers needs
    torch, and --help must not.
    """
    base = ROOT.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    assert path.is_file(), f"there is no module {module} ({path}), whose {table} holds the choices of a flag"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            value = getattr(node, "value", None)
            assert isinstance(value, ast.Dict), f"{table} of {path} is not written as a dict, so its keys are unknown"
            keys = [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            assert len(keys) == len(value.keys), f"a key of {table} in {path} is not a literal text: write it out"
            return tuple(keys)
    raise AssertionError(f"{path} has no table {table} at its top level, which holds the choices of a flag")


def flag_from(f: Field[Any], hint: Any, default: Any = MISSING, shared: Mapping[str, Any] | None = None) -> Flag:
    """The flag that a field declares.

    hint: its resolved annotation. default: the program's default, which overrides that of the field. shared: attributes
    of Flag that hold for every field of its group unless the field declares another value.
    """
    arguments = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [a for a in arguments if a is not type(None)]
    assert len(kinds) == 1 and kinds[0] in (bool, int, float, str), f"--{f.name} has the unsupported type {hint}"
    if default is MISSING:
        default = f.default
    assert default is not MISSING, f"--{f.name} has no default"
    made = Flag(f.name, kinds[0], type(None) in arguments, default, **{**(shared or {}), **f.metadata})
    try:
        convert(made, default)
    except ValueError as error:
        raise AssertionError(f"the default of --{f.name} is not valid: {error}") from error
    return made


def convert(flag: Flag, value: Any) -> Any:
    """Convert a typed string, or a value of a file, to the type of the flag. ValueError states the expected values."""
    may_be_unset = flag.optional and not flag.none_is_text
    if value is None or (may_be_unset and isinstance(value, str) and value.lower() in ("none", "null")):
        if flag.optional:
            return None
        raise ValueError(f"expects {expected(flag)}, not nothing")
    try:
        result = _CONVERTERS[flag.type](value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"expects {expected(flag)}, not {shown(value)}") from None
    if flag.choices:
        return _choice(flag, result)
    if isinstance(result, str):
        _check_text(flag, result)
    elif not _in_range(flag, result):
        raise ValueError(f"must be {range_text(flag)}, not {shown(result)}")
    elif flag.type is int and not -LARGEST <= result <= LARGEST:  # where no bound of the flag was named first
        raise ValueError(f"must be below 2^63, not {shown(result)}")
    return result


def _check_text(flag: Flag, value: str) -> None:
    """ValueError for a text that is no name of anything: blank, or with characters that no file name may contain."""
    if not value.strip():
        raise ValueError(f"expects {expected(flag)}, and it is empty (is a variable of the shell not set?)")
    if "\0" in value:
        raise ValueError("holds a NUL character: remove it")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(
            f"is not UTF-8 ({one_line_text(ascii(value))}): rename the file or folder, since the record of a run is "
            "UTF-8"
        )


def _in_range(flag: Flag, value: Any) -> bool:
    return (
        (flag.at_least is None or value >= flag.at_least)
        and (flag.above is None or value > flag.above)
        and (flag.at_most is None or value <= flag.at_most)
    )


def range_text(flag: Flag) -> str:
    """Describe the range of a number; "" without bounds."""
    bounds = (("at least", flag.at_least), ("above", flag.above), ("at most", flag.at_most))
    return " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)


def _choice(flag: Flag, value: Any) -> Any:
    choices = flag.choices or ()
    table = {str(k).lower(): v for k, v in flag.aliases.items()}
    table |= {str(c).lower(): c for c in choices}
    if str(value).lower() in table:
        return table[str(value).lower()]
    names = ", ".join(map(str, choices))
    raise ValueError(f"must be one of {names}, not {shown(value)}{did_you_mean(str(value), table)}")


def _bool(value: Any) -> bool:
    text = str(value).strip().lower()
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise ValueError


def _int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, str) and not value.isascii()):
        raise ValueError
    try:
        return int(value) if not isinstance(value, float) else _exact_int(value)
    except ValueError:
        return _exact_int(float(value))  # 1e5


def _exact_int(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or (isinstance(value, str) and not value.isascii()) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _str(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError  # YAML reads 2026-01-01 as a date, and others as lists or bytes
    return str(value)


_CONVERTERS: dict[type, Callable[[Any], Any]] = {bool: _bool, int: _int, float: _float, str: _str}
_NOUNS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def expected(flag: Flag) -> str:
    """Describe the values that a flag accepts, for messages."""
    return _NOUNS[flag.type] + (f" ({flag.unit})" if flag.unit else "") + (", or none" if flag.optional else "")


def shown(value: Any) -> str:
    """A value for a message: on one line, and cut in the middle where it is long, or nested without end."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 120
    try:
        return one_line_text(short.repr(value))
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def format_value(value: Any) -> str:
    """Format a value for help and messages."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return one_line_text(value)

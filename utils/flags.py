"""A flag: a field of an options dataclass, what it holds, and how a text or a value of a file becomes that.

Metadata of a field: help; unit; choices (letter case is ignored, the table's is stored); aliases (another spelling -> a
choice); at_least, at_most (bounds of a number). Knows nothing of programs, command lines and files.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field
from difflib import get_close_matches
from typing import Any

from utils.errors import fold

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


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


def flag_of(f: Field, hint: Any) -> Flag:
    """The flag that a field is, whose annotation is resolved to hint."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [a for a in arguments if a is not type(None)]
    assert len(kinds) == 1 and kinds[0] in (bool, int, float, str), (
        f"--{f.name} has the type {hint}: no flag can hold it"
    )
    default = f.default_factory() if f.default_factory is not MISSING else f.default
    assert default is not MISSING, f"--{f.name} has no default"
    return Flag(f.name, kinds[0], type(None) in arguments, default, dict(f.metadata))


def convert(flag: Flag, value: Any) -> Any:
    """A typed string, or a value of a file, as what the flag holds. ValueError: what was expected instead."""
    empty = flag.optional and not flag.metadata.get("none_is_a_text")  # there `none` is not the same as unset
    if value is None or (empty and isinstance(value, str) and value.lower() in ("none", "null")):
        if flag.optional:
            return None
        raise ValueError(f"expects {expected(flag)}, not nothing")
    try:
        result = _CONVERTERS[flag.type](value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"expects {expected(flag)}, not {fold(repr(value))}") from None
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
    raise ValueError(f"must be one of {', '.join(map(str, choices))}, not {fold(repr(value))}{near(str(value), table)}")


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


def expected(flag: Flag) -> str:
    """What a flag takes, in words, for messages."""
    unit = flag.metadata.get("unit")
    return _NOUNS[flag.type] + (f" ({unit})" if unit else "") + (", or none" if flag.optional else "")


def near(name: str, known: Iterable[str]) -> str:
    """A guess at what a misspelt name meant, or nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    return str(value)

"""Class labels: one canonical spelling, for values in files, flags, Python and outputs.

1, 1.0, "1" and "1.0" are one label, and so are true, True and "true". This module knows neither files nor flags.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

# A number as programs print it. "007", "+1" and "1e3" are names: a postal code, a vote, a part of a checksum.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-][0-9]{1,3})?")
_BOOLEANS = ("true", "false")
_NO_VALUES = ("nan", "null", "none", "na", "n/a")  # what programs print where a number is missing


def canonical_label(value: Any) -> str:
    """The name of a label: a string, a number, a boolean, or a NumPy scalar of one of these.

    - Numbers are printed without trailing zeros: 1, 1.0, "1", "1.0" -> "1"; 0.50 -> "0.5"; -0.0 -> "0".
    - Booleans, and strings that spell one in any case, are "true" and "false".
    - Other strings are stripped and composed (NFC); case and blanks inside are kept.

    ValueError, with the reason, for what is no label: None, NaN, infinities, blank strings, lists, objects.
    """
    if isinstance(value, str):
        return _of_text(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or PyTorch
        value = value.item()
    if value is None:
        raise ValueError("null is no label")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no label")
        return _of_number(str(value))
    if isinstance(value, int):
        return str(value)  # ValueError for more than 4,300 digits
    if isinstance(value, str):  # of a NumPy scalar
        return _of_text(value)
    kinds: dict[type, str] = {list: "a list", tuple: "a list", dict: "an object"}
    raise ValueError(f"{kinds.get(type(value), f'a value of type {type(value).__name__}')} is no label")


def is_number(label: str) -> bool:
    """Whether a canonical label is a number."""
    return _NUMBER.fullmatch(label) is not None


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """The different labels in their order: by value if all are numbers, else alphabetically."""
    found = set(labels)
    return tuple(sorted(found, key=Decimal if all(map(is_number, found)) else None))


def spells_no_value(label: str, others: Iterable[str]) -> bool:
    """Whether a canonical label such as "NaN" stands for a missing value: all others are numbers or booleans.

    Among names it may be a name: "none" is a class of many corpora, and "nan" the code of a language.
    """
    if label.lower() not in _NO_VALUES:
        return False
    rest = [other for other in others if other.lower() not in _NO_VALUES]
    return bool(rest) and all(other in _BOOLEANS or is_number(other) for other in rest)


def _of_text(text: str) -> str:
    text = unicodedata.normalize("NFC", text.strip())
    if not text:
        raise ValueError("a blank is no label")
    if text.lower() in _BOOLEANS:
        return text.lower()
    return _of_number(text) if _NUMBER.fullmatch(text) else text


def _of_number(text: str) -> str:
    """A number without exponent and trailing zeros. Decimal is exact and has no limit of digits, unlike int."""
    text = format(Decimal(text), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text

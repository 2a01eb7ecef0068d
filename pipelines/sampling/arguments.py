"""Checks of what a caller passes: texts, counts and weights, typed or from Python.

What cannot be used is refused with a UserError; what loses a part of a text is printed in one line.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from dataset_utils.characters import apply_rules
from utils.cli.flags import LARGEST, shown
from utils.errors import UserError

MOST_TEXTS = 10_000_000  # of one call: all of them are held in memory


def check_count(value: Any, what: str, *, at_least: int = 1, at_most: int = MOST_TEXTS) -> int:
    """A whole number in a range; integers of NumPy are accepted, True is not. what: names it in the UserError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise UserError(f"{what} is {shown(value)}: give a whole number, {at_least} or more")
    if not at_least <= number <= at_most:
        raise UserError(f"{what} is {shown(number)}: give {at_least} or more, and at most {at_most:,}")
    return number


def check_seed(value: Any, what: str = "seed") -> int:
    """A whole number of 64 bits."""
    return check_count(value, what, at_least=-LARGEST, at_most=LARGEST)


def check_number(value: Any, what: str) -> float:
    """A finite number; True is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool | str | bytes):
        raise UserError(f"{what} is {shown(value)}: give a finite number")
    return number


def check_texts(
    texts: Any,
    what: str = "text",
    *,
    tokenizer: Any = None,
    limit: tuple[int, int] | None = None,
    refuse_unknown: bool = True,
) -> list[str]:
    """The texts as a list of strings without control codes.

    what: names one of them in messages, as in "source". tokenizer: the one that will read them; None: they are not
    tokenized. limit: the longest text in tokens, special ones included, and how many tokens of a longer one are read;
    None: the caller refuses a longer one. refuse_unknown: refuse a text of which the tokenizer knows no word, instead
    of saying so.

    UserError for anything but a list of texts, and for a text that is blank, not UTF-8, contains NUL, or has nothing
    that the tokenizer knows. One line on standard error says which texts are cut or partly unknown.
    """
    rows = [_check_text(text, name) for text, name in _named(texts, what)]
    if tokenizer is not None:
        _check_tokens(rows, [name for _, name in _named(rows, what)], tokenizer, limit, refuse_unknown)
    return rows


def _named(texts: Any, what: str) -> list[tuple[Any, str]]:
    """The texts, each with its name in messages."""
    if isinstance(texts, str | bytes):
        raise UserError(f"{what}s are {shown(texts)}: give a list of texts, as in [{shown(texts)}]")
    if not isinstance(texts, Iterable) or isinstance(texts, dict | set | frozenset) or getattr(texts, "ndim", 1) != 1:
        raise UserError(f"{what}s are {shown(texts)}: give a list of texts")
    rows = list(texts)
    if not rows:
        raise UserError(f"the list of {what}s is empty: give one or more")
    return [(text, what if len(rows) == 1 else f"{what} {i} of {len(rows)}") for i, text in enumerate(rows, 1)]


def _check_text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{name} is {shown(text)}, of type {type(text).__name__}: give a text")
    text = str(text)  # of a NumPy scalar
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(
            f"{name}, {_excerpt(text)}, is not UTF-8: convert it, or type it in a terminal that is set to UTF-8"
        )
    if "\0" in text:
        raise UserError(f"{name}, {_excerpt(text)}, contains a NUL character: remove it")
    try:
        text, noticed = apply_rules(text)  # as for the texts of files
    except ValueError as error:
        raise UserError(f"{name}, {_excerpt(text)}: {error}") from None
    if not text.strip():
        raise UserError(f"{name} is blank: give a text")
    for what in noticed:
        _note(f"{name}, {_excerpt(text)}, {what}")
    return text


def _check_tokens(
    rows: Sequence[str], names: Sequence[str], tokenizer: Any, limit: tuple[int, int] | None, refuse_unknown: bool
) -> None:
    encoded = tokenizer(
        list(rows), truncation=False, padding=False, return_attention_mask=False, return_token_type_ids=False,
        verbose=False,
    )["input_ids"]  # fmt: skip
    added, unknown_id = tokenizer.num_special_tokens_to_add(pair=False), tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids) - {unknown_id}
    cut: list[str] = []
    lacking: list[str] = []
    spelled: list[str] = []
    for text, name, ids in zip(rows, names, encoded, strict=True):
        own = [i for i in ids if i not in special]
        unknown = sum(i == unknown_id for i in own) if unknown_id is not None else 0
        if not own:
            raise UserError(f"{name}, {_excerpt(text)}, has nothing that the tokenizer of this run reads: give words")
        if unknown == len(own) and refuse_unknown:
            raise UserError(
                f"{name}, {_excerpt(text)}: none of its words is in the vocabulary of this run: give words like those "
                "of its training texts"
            )
        if unknown:
            lacking.append(f"{unknown} of the {len(own)} words of {name}, {_excerpt(text)}")
        if len(ids) - len(own) > added:
            spelled.append(f"{name}, {_excerpt(text)}")
        if limit is not None and len(ids) > limit[0]:
            cut.append(f"{name}, {_excerpt(text)}, has {len(ids)} tokens, of which {len(ids) - limit[1]} are cut")
    if cut and limit is not None:
        _note(f"{_first(cut)}: this run reads {limit[0]} tokens, special tokens included")
    if lacking:
        _note(f"{_first(lacking)}, are unknown to the vocabulary of this run: it cannot write them")
    if spelled:
        _note(f"{_first(spelled)}, contains special tokens of this run, which are not read as text")


def _first(lines: Sequence[str]) -> str:
    return lines[0] + (f" (and {len(lines) - 1} more)" if len(lines) > 1 else "")


def _excerpt(text: str, width: int = 40) -> str:
    return shown(text if len(text) <= width else text[: width - 3] + "...")


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)

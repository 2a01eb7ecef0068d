"""Characters that are no text, in texts of every format: one table of rules.

No-break blanks, joiners, direction marks and private characters are text: no rule names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dataset_utils.rows import Tally
from utils.errors import UserError


def _windows_1252(match: re.Match[str]) -> str:
    """The character that a byte of 0x80 to 0x9F has in Windows-1252, which HTML prescribes for such codes."""
    return match[0].encode("latin-1").decode("cp1252", errors="ignore")


@dataclass(frozen=True)
class Rule:
    """What is done with some characters. Exactly one of `refused` and `note` is set."""

    characters: str  # a regular expression
    replacement: str | Callable[[re.Match[str]], str] | None = None  # None: kept
    note: str = ""  # end of a sentence about texts
    refused: str = ""  # reason


RULES = (
    Rule(
        "\x00", refused="a NUL character, which is no text: remove all of them, e.g. with tr -d '\\000' < FILE > NEW"),
    Rule("[\ud800-\udfff]", refused="half a surrogate pair, which is no text: remove it"),
    Rule(
        "[\x80-\x9f]", _windows_1252,
        "held codes of Windows-1252 (U+0080 to U+009F), which were replaced by its characters"),
    Rule(r"\x1b\[[0-?]*[ -/]*[@-~]", "", "held escape sequences of a terminal, which were removed"),
    Rule(
        "[\x0b\x0c\x1c-\x1f]", " ", "held control characters that separate (such as form feed), which became blanks"),
    Rule("[\x01-\x08\x0e-\x1b\x7f\ufdd0-\ufdef\ufffe\uffff]", "", "held control characters, which were removed"),
    Rule("\ufeff", "", "held byte-order marks (U+FEFF), which were removed"),
    Rule("\ufffd", None, "held replacement characters (U+FFFD), where another program lost a letter"),
)  # fmt: skip
_ANY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffd-\uffff]")
_COMPILED = tuple((re.compile(rule.characters), rule) for rule in RULES)


_PRINTABLE = bytes((9, 10, 13, *range(32, 127)))


def is_clean(text: str) -> bool:
    """A fast check of most texts that no rule concerns; False is no proof."""
    if text.isascii():
        return not text.encode().translate(None, _PRINTABLE)
    return text.isprintable() and "\ufffd" not in text


def apply_rules(text: str) -> tuple[str, list[str]]:
    """The text after all rules, and the note of each that concerned it. ValueError, with the reason, if one refuses."""
    notes: list[str] = []
    if is_clean(text) or not _ANY.search(text):
        return text, notes
    for pattern, rule in _COMPILED:
        if pattern.search(text):
            if rule.refused:
                raise ValueError(rule.refused)
            notes.append(rule.note)
            if rule.replacement is not None:
                text = pattern.sub(rule.replacement, text)
    return text, notes


def mend(text: str, tally: Tally, where: str, line: int) -> str:
    """Apply the rules to a text of a file. where, line: its place, for the tally and for a UserError."""
    try:
        text, notes = apply_rules(text)
    except ValueError as error:
        raise UserError(f"{where}, line {line}: {error}") from None
    for note in notes:
        tally.add(note, line)
    return text

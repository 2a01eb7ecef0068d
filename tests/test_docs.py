"""What the documents promise: links lead somewhere; files, flags and corpora that they name exist; the README is
short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import compare_systems, compare_systems_train, first_texts, real_text
from dataset_utils.registry import DATASETS
from evaluation.report import __main__ as report
from evaluation.score import __main__ as score
from pipelines import caches, infill, rewrite, sample
from pipelines.cli.programs import (
    AUTOENCODER,
    CAUSAL_LM,
    CLASSIFIER,
    DIFFUSION,
    DRAFT_MODEL,
    PRETRAIN,
    SEQ2SEQ,
    TEXT_DECODER,
)
from pipelines.recipe import arguments as recipe_arguments

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
PROGRAMS = (PRETRAIN, AUTOENCODER, DIFFUSION, CLASSIFIER, DRAFT_MODEL, CAUSAL_LM, SEQ2SEQ, TEXT_DECODER)
# flags of other programs that the documents name
FOREIGN = {
    "train",
    "valid",
    "test",
    "nproc_per_node",
    "standalone",
    "processes",  # of scripts/launch
    "mpi",  # of srun
    "output_dir",
    "markdown",
    "logdir",  # of tensorboard
    "from",
    "dry_run",
    "tokenizer",
    "lowercase",  # of latent_models.tokenizers
    "strip_accents",
    "kills",  # of benchmarks/chaos.py
    "trainings",
    "inputs",  # of benchmarks/fuzz.py
    "out",
}
MAX_README_LINES = 130


def typed_flags() -> set[str]:
    """Every flag that some program accepts on its command line."""
    known = {name for program in PROGRAMS for name, flag in program.flags.items() if not flag.config_only}
    known |= {name for program in PROGRAMS for name in program.deprecated}
    known |= {
        option.lstrip("-")
        for program in (
            caches,
            infill,
            rewrite,
            sample,
            score,
            report,
            compare_systems,
            compare_systems_train,
            real_text,
            recipe_arguments,
        )
        for action in program.parser()._actions
        for option in (action.dest, *action.option_strings)
    }
    return known | {f"no_{name}" for name in known} | FOREIGN | {"help", "l2_normalize_latent"}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    broken = [
        target for target in targets if target and "://" not in target and not ((ROOT / name).parent / target).exists()
    ]
    assert not broken


@pytest.mark.parametrize("name", NAMES)
def test_flags_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "docs/migrating.md":
        text = re.sub(r"^\| .*? \|", "|", text, flags=re.M)  # the published commands
    named = set(re.findall(r"(?<![\w-])--([A-Za-z][A-Za-z0-9_]+)(?![\w-])", text))
    assert named <= typed_flags(), sorted(named - typed_flags())


@pytest.mark.parametrize("name", NAMES)
def test_flags_named_for_a_configuration_file_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    known = {flag for program in PROGRAMS for flag in program.flags}
    assert set(re.findall(r"--config (\w+)=", text)) <= known


def test_files_named_in_the_architecture_exist() -> None:
    packages = "dataset_utils|diffusion|evaluation|latent_models|model|pipelines|utils"
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/])((?:{packages})/[a-z0-9_/]+)", text))
    names = {name.rstrip("/") for name in named}
    missing = [name for name in sorted(names) if not (ROOT / f"{name}.py").exists() and not (ROOT / name).is_dir()]
    assert named and not missing


def test_every_corpus_is_in_the_usage() -> None:
    text = (ROOT / "docs/usage.md").read_text(encoding="utf-8")
    assert not [name for name in DATASETS if f"`{name}`" not in text]


def test_the_readme_fits_on_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_the_page_of_texts_is_that_of_the_records() -> None:
    assert first_texts.PAGE.read_text(encoding="utf-8") == first_texts.page(), "run python benchmarks/first_texts.py"

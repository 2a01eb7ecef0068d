"""What the documents promise: links lead somewhere, files and flags that they name exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dataset_utils.registry import DATASETS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
# flags of other programs that the documents speak of
FOREIGN = {"nproc_per_node", "standalone", "output_dir", "markdown", "from", "dry_run", "tokenizer"}
FOREIGN |= {"train", "valid", "test"}  # of dataset_utils.tales


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
    from pipelines import infill, rewrite, sample
    from pipelines.cli.programs import AUTOENCODER, CLASSIFIER, DIFFUSION, DRAFT_MODEL, PRETRAIN

    programs = (PRETRAIN, AUTOENCODER, DIFFUSION, CLASSIFIER, DRAFT_MODEL)
    known = {field.name for program in programs for group in program.groups.values() for field in fields(group)}
    known |= {flag for program in programs for flag in (*program.ignored, *program.reference_flags)} | FOREIGN
    known |= {action.dest for program in (infill, rewrite, sample) for action in program.parser()._actions}
    known |= {f"no_{flag}" for flag in known}  # which switches a flag off
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "docs/migrating.md":
        text = re.sub(r"^\| .*? \|", "|", text, flags=re.M)  # what is typed there
    named = set(re.findall(r"(?<![\w-])--([A-Za-z][A-Za-z0-9_]+)(?![\w-])", text))
    assert named <= known | {"help", "l2_normalize_latent"}, sorted(named - known)


def test_files_named_in_the_architecture_exist() -> None:
    rooms = "dataset_utils|diffusion|evaluation|latent_models|model|pipelines|utils"
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/])((?:{rooms})/[a-z_]+)", text))
    missing = [name for name in sorted(named) if not (ROOT / f"{name}.py").exists() and not (ROOT / name).is_dir()]
    assert named and not missing


def test_every_corpus_stands_in_the_recipes() -> None:
    text = (ROOT / "docs/usage.md").read_text(encoding="utf-8")
    assert not [name for name in DATASETS if f"`{name}`" not in text]

"""Runs that a flag names, found again by a resumed training: where both moved together, and where another is typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines import train_classifier
from pipelines.cli.programs import AUTOENCODER, CLASSIFIER
from pipelines.recorded_models import find_moved_models, model_places
from utils import checkpoints
from utils.cli.parse import check_flags, parse


@pytest.fixture
def adapted(programs, chain, tmp_path) -> Path:
    """A folder with a denoiser, and a decoder whose adaptation to it was interrupted after a step."""
    root = tmp_path / "first"
    shutil.copytree(chain / "diff", root / "diff")
    flags = f"--lm_mode decoder --resume_dir {root / 'diff/autoencoder'} --denoiser_run {root / 'diff'}"
    flags += " --config denoiser_steps=2 --save_every 1 --max_seconds 0"
    assert programs.autoencoder(chain / "lm", root / "adapted", flags) == 0
    assert checkpoints.load(root / "adapted").step == 1
    return root


def test_a_decoder_that_moved_with_its_denoiser_goes_on(programs, adapted, tmp_path, capfd):
    assert json.loads((adapted / "adapted/args.json").read_text())["models_relative"]["denoiser_run"] == "../diff"
    moved = adapted.rename(tmp_path / "moved")
    assert programs.resume("autoencoder", moved / "adapted") == 0
    assert f"--denoiser_run {adapted / 'diff'} of {moved / 'adapted'} is found at" in capfd.readouterr().err
    assert checkpoints.load(moved / "adapted").step == 4
    assert json.loads((moved / "adapted/args.json").read_text())["denoiser_run"] == str(moved / "diff")


def test_a_classifier_that_moved_with_its_diffusion_run_goes_on(programs, chain, tmp_path, capfd):
    root = tmp_path / "first"
    shutil.copytree(chain / "diff", root / "diff")
    words = (
        f"{programs.data} --diffusion_run {root / 'diff'} --classifier_dim 64 --classifier_depth 1 "
        f"--num_train_steps 3 --train_batch_size 8 --save_every 1 --max_seconds 0 --device cpu --no_wandb "
        f"--output_dir {root / 'classifier'}"
    )
    assert train_classifier.train(parse(CLASSIFIER, words.split())) == 0
    moved = root.rename(tmp_path / "moved")
    assert programs.resume("classifier", moved / "classifier") == 0
    assert f"--diffusion_run {root / 'diff'} of {moved / 'classifier'} is found at" in capfd.readouterr().err
    assert checkpoints.load(moved / "classifier").step == 3


def test_the_denoiser_of_a_resumed_decoder_may_be_typed(programs, adapted, tmp_path):
    (adapted / "diff").rename(tmp_path / "elsewhere")
    assert programs.resume("autoencoder", adapted / "adapted", f"--denoiser_run {tmp_path / 'elsewhere'}") == 0
    assert checkpoints.load(adapted / "adapted").step == 4


def test_a_typed_run_stays_and_a_recorded_one_is_found(tmp_path):
    for name in ("run", "diff", "typed"):
        (tmp_path / name).mkdir()
    settings = check_flags(AUTOENCODER, ["--resume_dir", str(tmp_path / "run"), "--denoiser_run", "/nowhere/diff"])
    settings.checkpoint_args = {"models_relative": {"denoiser_run": "../diff"}}
    assert find_moved_models(settings) == [] and settings.get("denoiser_run") == "/nowhere/diff", "typed"
    settings.set("denoiser_run", "/nowhere/diff", source="saved")
    assert len(find_moved_models(settings)) == 1 and settings.get("denoiser_run") == str(tmp_path / "diff")
    assert model_places(settings, tmp_path / "run") == {"denoiser_run": "../diff"}

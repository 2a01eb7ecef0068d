"""Averages of several horizons at once: the one with the lowest validation loss is sampled, saved and read."""

from __future__ import annotations

import json

import pytest

from pipelines.cli.rules import parse_decays
from pipelines.load_run import load_run
from pipelines.steps.diffusion import DiffusionStep
from utils import checkpoints, ema
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.trackers import read_metrics

FLAGS = "--num_train_steps 20 --learning_rate 3e-3 --log_every 4 --save_and_sample_every 20 --save_every 5"
AVERAGES = f"{FLAGS} --ema_decay 0.5 --ema_decays 0.99,0,0.5"


@pytest.fixture
def no_warmup(monkeypatch):
    """Short runs average from their first step on."""
    monkeypatch.setattr(ema, "WARMUP_UPDATES", 0)


def test_validation_chooses_the_average_that_is_sampled_saved_and_read(programs, chain, no_warmup, tmp_path, capsys):
    space, run = f"--latent_model_path {chain / 'ae'}", tmp_path / "run"
    assert programs.diffusion(space, run, AVERAGES) == 0
    said = capsys.readouterr().err
    last = next(line for line in reversed(read_metrics(run)) if "val_ema_loss" in line)
    losses = {None: last["val_ema_loss"], "0.99": last["val_ema_loss_0.99"], "0.0": last["val_ema_loss_0.0"]}
    assert len(set(losses.values())) == 3 and losses["0.0"] == pytest.approx(last["val_loss"]), "decay 0: the weights"
    chosen = min(losses, key=losses.get)
    newest, best = checkpoints.load(run), checkpoints.load_best(run)
    assert newest.metadata["ema_chosen"] == chosen and chosen is not None, "early weights are worse than late ones"
    assert best.metadata["ema_decay"] == float(chosen) and best.metadata["best"]["value"] == losses[chosen]
    assert f"the averaged weights those of decay {float(chosen):g} are used from now on" in said
    wanted = newest.tensors[f"ema_{chosen}"]
    assert fingerprint(best.tensors["ema"]) == fingerprint(wanted) != fingerprint(newest.tensors["ema"])
    for flags in ({}, {"checkpoint": "best"}):
        model = load_run(run, device="cpu", **flags).components.model
        assert fingerprint({name: x for name, x in model.state_dict().items() if name in wanted}) == fingerprint(wanted)


def test_one_more_average_changes_neither_the_training_nor_the_first_one(programs, chain, no_warmup, tmp_path):
    space = f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, tmp_path / "several", AVERAGES) == 0
    assert programs.diffusion(space, tmp_path / "one", f"{FLAGS} --ema_decay 0.5") == 0
    several, one = (checkpoints.load(tmp_path / name) for name in ("several", "one"))
    for part in ("model", "ema", "optimizer"):
        assert fingerprint(several.tensors[part]) == fingerprint(one.tensors[part])
    assert set(several.tensors) - set(one.tensors) == {"ema_0.99", "ema_0.0"}
    logged = [
        [line["val_ema_loss"] for line in read_metrics(tmp_path / name) if "val_ema_loss" in line]
        for name in ("several", "one")
    ]
    assert logged[0] == logged[1]


def test_averages_resume_exactly(programs, chain, no_warmup, stopped_run, fingerprints, tmp_path):
    space = f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, tmp_path / "whole", AVERAGES) == 0
    stopped_run(
        "diffusion", DiffusionStep, lambda: programs.diffusion(space, tmp_path / "parts", AVERAGES), tmp_path / "parts"
    )
    assert fingerprints(tmp_path / "parts") == fingerprints(tmp_path / "whole")
    args = json.loads((tmp_path / "parts/args.json").read_text())
    assert args["ema_decays"] == "0.99,0,0.5"


def test_decays_are_numbers():
    assert parse_decays(None) == [] and parse_decays("0.999, 0.9995,0.999") == [0.999, 0.9995]
    for text in ("0.9;0.99", "1", "-0.1", "0.9,", "nan", ""):
        with pytest.raises(UserError, match="is no decay: give numbers from 0 to below 1, such as") as error:
            parse_decays(text)
        assert "\n" not in str(error.value)

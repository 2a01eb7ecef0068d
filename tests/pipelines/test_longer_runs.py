"""Runs that are lengthened: where the learning rate would jump; and runs that start from another's optimizer."""

from __future__ import annotations

import json

import pytest

from pipelines.longer_runs import BEFORE_DECAY, DECAYED
from utils import checkpoints
from utils.errors import UserError
from utils.trackers import read_metrics

WSD = "--lr_schedule warmup_stable_decay --lr_warmup_steps 1 --learning_rate 1e-3"


def test_a_stable_run_is_lengthened_without_a_seam(programs, chain, fingerprints, tmp_path, capsys):
    """It goes back to the step before its learning rate fell, so it equals a run of the longer length bit for bit."""
    space = f"--latent_model_path {chain / 'ae'}"
    assert programs.diffusion(space, tmp_path / "whole", f"{WSD} --num_train_steps 12") == 0
    assert programs.diffusion(space, tmp_path / "parts", f"{WSD} --num_train_steps 10 --save_every 5") == 0
    parts = tmp_path / "parts"
    assert checkpoints.load(parts / BEFORE_DECAY).step == 8, "a fifth of the steps decays"
    assert checkpoints.load(parts).step == 10
    capsys.readouterr()
    assert programs.resume("diffusion", parts, "--num_train_steps 12") == 0
    said = capsys.readouterr().err
    assert "the run goes back from step 10 to step 8, before its learning rate fell" in said
    assert "extended from 10 to 12 steps: the learning rate goes on as it was" in said
    whole, lengthened = fingerprints(tmp_path / "whole"), fingerprints(parts)
    assert lengthened[1] == whole[1], "the last checkpoint"
    trained = [[line for line in run[0] if "loss" in line] for run in (whole, lengthened)]
    assert trained[0] == trained[1], "every logged loss and learning rate"
    assert [path.name for path in (parts / DECAYED).iterdir()] == ["step_00000010"]
    assert checkpoints.load(parts / BEFORE_DECAY).step == 10
    assert programs.resume("diffusion", parts) == 0 and checkpoints.load(parts).step == 12


@pytest.mark.parametrize("stage", ["autoencoder", "pretrain"])
def test_other_programs_are_lengthened_likewise(programs, chain, fingerprints, tmp_path, stage):
    def train(folder, steps: int) -> int:
        flags = f"{WSD} --num_train_steps {steps}"
        return (
            programs.pretrain(folder, flags)
            if stage == "pretrain"
            else programs.autoencoder(chain / "lm", folder, flags)
        )

    assert train(tmp_path / "whole", 7) == 0
    assert train(tmp_path / "parts", 5) == 0
    assert programs.resume(stage, tmp_path / "parts", "--num_train_steps 7") == 0
    assert fingerprints(tmp_path / "parts")[1] == fingerprints(tmp_path / "whole")[1]


def test_a_run_takes_the_optimizer_of_another_along(programs, chain, tmp_path, capsys):
    space, path = f"--latent_model_path {chain / 'ae'}", f"--init_path {tmp_path / 'first'}"
    assert programs.diffusion(space, tmp_path / "first", "--num_train_steps 3 --learning_rate 1e-3") == 0
    first = checkpoints.load(tmp_path / "first")
    frozen = "--num_train_steps 1 --learning_rate 0 --lr_warmup_steps 0"
    capsys.readouterr()
    assert programs.diffusion(space, tmp_path / "along", f"{path} --init_optimizer {frozen}") == 0
    assert "starts from step 3" in (said := capsys.readouterr().err) and "AdamW" in said and "from step 0" in said
    assert programs.diffusion(space, tmp_path / "alone", f"{path} {frozen}") == 0
    along, alone = (checkpoints.load(tmp_path / name) for name in ("along", "alone"))
    assert along.step == alone.step == 1

    def adam_steps(checkpoint) -> set[float]:
        tensors = {k: v for k, v in checkpoint.tensors["optimizer"].items() if k.startswith("step/")}
        return {float(x) for x in tensors.values()} or {
            value for key, value in checkpoint.metadata["optimizer"]["scalars"].items() if key.startswith("step/")
        }

    assert adam_steps(first) == {3.0} and adam_steps(along) == {4.0} and adam_steps(alone) == {1.0}
    assert {group["lr"] for group in along.metadata["optimizer"]["groups"]} == {0.0}, "the rate is that of this run"
    assert along.metadata["ema_updates"] == 4 and alone.metadata["ema_updates"] == 1
    losses = [read_metrics(tmp_path / name)[0]["loss"] for name in ("along", "alone")]
    assert losses[0] == losses[1], "the weights are the same"
    assert json.loads((tmp_path / "along/args.json").read_text())["init_optimizer"] is True


def test_an_optimizer_that_does_not_fit_is_one_line(programs, chain, tmp_path):
    space, first = f"--latent_model_path {chain / 'ae'}", f"--init_path {chain / 'diff'} --init_optimizer"
    with pytest.raises(UserError, match="--init_optimizer takes the optimizer of --init_path along: name a run"):
        programs.diffusion(space, tmp_path / "none", "--init_optimizer")
    normalized = f"--latent_model_path {chain / 'ae_l2'} --self_condition"
    with pytest.raises(UserError, match="the moments of another --optimizer than this run: name the same one"):
        programs.diffusion(normalized, tmp_path / "muon", f"{first} --optimizer muon")

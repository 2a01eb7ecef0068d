"""What programs do about damaged and poisoned files of a run."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from pipelines.best_checkpoint import load_best_score
from utils import checkpoint_folder, checkpoints
from utils.errors import UserError
from utils.trackers import read_metrics


def poison(run) -> None:
    """Make the newest weights nan, as a release that did not check them would have saved them."""
    newest = checkpoints.load(run)
    tensors = {
        name: {key: x.clone().fill_(math.nan) if x.is_floating_point() else x for key, x in part.items()}
        for name, part in newest.tensors.items()
    }
    checkpoint_folder.write(newest.path, tensors, newest.metadata)


def test_a_poisoned_run_is_neither_evaluated_nor_resumed(programs, chain, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(chain / "diff", run)
    poison(run)
    for flags in ("--eval --num_samples 4", "--resume_training --num_train_steps 4"):
        with pytest.raises(UserError) as refused:
            programs.again("diffusion", run, flags)
        line = str(refused.value)
        assert "holds weights that are nan or infinite (model: " in line and "\n" not in line


def test_an_update_that_poisons_the_weights_is_not_saved(programs, chain, tmp_path):
    """The loss of the step is finite; what the optimizer makes of it is not."""
    run = tmp_path / "run"
    flags = "--num_train_steps 2 --save_every 1 --learning_rate 1e30 --lr_warmup_steps 0 --adam_weight_decay 1e30"
    space = f"--latent_model_path {chain / 'ae'}"
    with pytest.raises(UserError, match="nan or infinite") as refused:
        programs.diffusion(space, run, flags)
    assert "\n" not in str(refused.value) and "--learning_rate" in str(refused.value)
    for path in run.glob("checkpoints/*"):
        assert checkpoint_folder.not_finite(checkpoint_folder.read(path).tensors) is None


def test_a_best_checkpoint_that_is_damaged_or_gone_sets_no_bar(tmp_path, capsys):
    tensors = {"model": {"w": torch.ones(3)}}
    old = {"metric": "bleu", "value": 9.0, "step": 1}
    assert load_best_score(tmp_path, {}) == {}
    assert load_best_score(tmp_path, old) == {}, "its weights are gone"
    path = checkpoints.save_best(tmp_path, tensors, {"step": 2, "best": {**old, "value": 5.0, "step": 2}})
    assert load_best_score(tmp_path, old)["value"] == 5, "what best/ holds, and not what the checkpoint says"
    path.rename(tmp_path / "best.replaced")
    assert load_best_score(tmp_path, old)["value"] == 5, "a kill between two renames"
    file = tmp_path / "best.replaced/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert load_best_score(tmp_path, old) == {}
    assert "damaged" in (line := capsys.readouterr().err) and line.count("\n") == 1


@pytest.mark.parametrize(
    "odd", [b'{"step": 2, "lo', b"\0" * 50 + b"\n", b"5\n", b'{"loss": 1}\n', b"\xff\xfe{}\n", b"\n[]\n"]
)
def test_an_odd_line_in_the_log_does_not_block_a_resume(programs, chain, tmp_path, odd, capsys):
    run = tmp_path / "run"
    shutil.copytree(chain / "ae", run)
    before = read_metrics(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(odd)
    assert programs.resume("autoencoder", run) == 0
    assert read_metrics(run) == before
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert "odd line(s) of" in capsys.readouterr().err

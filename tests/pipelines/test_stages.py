"""Stages in sequence: an interrupted stage resumes, a finished stage is skipped, and its seconds add up."""

from __future__ import annotations

from functools import partial

from pipelines.cli.programs import PRETRAIN
from pipelines.stages import Stage, StageTimer, run_stage
from pipelines.steps.denoising_lm import DenoisingLMStep
from utils import checkpoints


def test_an_interrupted_stage_resumes_and_a_finished_one_is_skipped(programs, tmp_path, stop_after, capsys):
    flags = (
        f"{programs.data} --device cpu --d_model 64 --layers 1 --max_seq_len 40 --num_train_steps 12 "
        "--train_batch_size 4 --eval_every 100 --eval_texts 4 --log_every 1"
    )
    stage = Stage("lm", PRETRAIN, "a tiny BART", "validation.json", flags)
    clock = StageTimer(tmp_path / "seconds.json")
    run = partial(clock.time, stage.name, partial(run_stage, stage, tmp_path, ["--max_seconds", "600"]))

    stop_after(DenoisingLMStep, 5)
    assert run() == 143
    assert checkpoints.load(tmp_path / "lm").step == 5
    assert not (tmp_path / "lm/validation.json").exists()
    first = clock.seconds["lm"]

    assert run() == 0
    printed = capsys.readouterr().out
    assert "--resume_training" in printed and printed.count("--max_seconds 600") == 2, (
        "the limit holds for a resumed stage too"
    )
    assert checkpoints.load(tmp_path / "lm").step == 12
    assert (tmp_path / "lm/validation.json").exists()
    assert StageTimer(tmp_path / "seconds.json").seconds["lm"] >= first

    assert run() == 0
    assert "already done" in capsys.readouterr().out

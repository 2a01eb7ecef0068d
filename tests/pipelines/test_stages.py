"""Stages in sequence: an interrupted stage resumes, a finished stage is skipped, and its seconds add up.

In a folder whose name has blanks, quotes, braces, percent signs and other letters than ASCII.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import pytest

from evaluation.report.__main__ import parser
from pipelines import pretrain, stages
from pipelines.cli.programs import DIFFUSION, PRETRAIN
from pipelines.stages import Stage, StageTimer, banner, fill, run_stage, scale_steps, show_page
from pipelines.steps.denoising_lm import DenoisingLMStep
from pipelines.training import is_finished
from utils import checkpoints, device_memory

ODD = "a  b 'c' \"d\" {root} {} {x} 100%s $HOME [0-9]* é 図"


def test_an_interrupted_stage_resumes_and_a_finished_one_is_skipped(programs, tmp_path, stop_after, capsys):
    flags = (
        f"{programs.data} --device cpu --d_model 64 --layers 1 --max_seq_len 40 --num_train_steps 12 "
        "--train_batch_size 4 --eval_every 100 --eval_texts 4 --log_every 1"
    )
    stage, root = Stage("lm", PRETRAIN, "a tiny BART", "validation.json", flags), tmp_path / ODD
    clock = StageTimer(root / "seconds.json")
    run = partial(clock.time, stage.name, partial(run_stage, stage, root, ["--max_seconds", "600"]))

    stop_after(DenoisingLMStep, 5)
    assert run() == 143
    assert checkpoints.load(root / "lm").step == 5
    assert not (root / "lm/validation.json").exists()
    first = clock.seconds["lm"]

    assert run() == 0
    printed = capsys.readouterr().out
    assert "--resume_training" in printed and printed.count("--max_seconds 600") == 2, (
        "the limit holds for a resumed stage too"
    )
    assert checkpoints.load(root / "lm").step == 12
    assert (root / "lm/validation.json").exists()
    assert StageTimer(root / "seconds.json").seconds["lm"] >= first

    assert run() == 0
    assert "already done" in capsys.readouterr().out


def test_a_resumed_stage_finds_its_latent_cache_from_another_folder_and_its_trackers(tmp_path, monkeypatch):
    ran: list[list[str]] = []
    monkeypatch.setattr(stages, "run_program", lambda program, argv: ran.append(list(argv)) or 0)
    monkeypatch.setattr(checkpoints, "has_checkpoint", lambda folder: True)
    for flags, found in (
        ("--latent_cache_dir {root}/cache", ["--latent_cache_dir", str(tmp_path / "cache")]),
        ("--latent_cache_dir {root}/cache --latent_cache_dir=mine --log_every 1", ["--latent_cache_dir", "mine"]),
        ("--log_every 1", []),
        (
            "--log_every 1 --tensorboard --wandb_name mine --device=cpu --max_seconds 3",
            [
                "--device=cpu",
                "--tensorboard",
                "--wandb_name=mine",
            ],
        ),
    ):
        assert run_stage(Stage("x", DIFFUSION, "t", "f", flags), tmp_path, ["--max_seconds", "9"]) == 0
        assert ran.pop() == ["--resume_training", "--resume_dir", str(tmp_path / "x"), *found, "--max_seconds", "9"]


def test_a_program_releases_the_memory_of_the_gpu(monkeypatch):
    """Also one that fails: another process may need it next."""
    order: list[str] = []

    class Failed(Exception):
        pass

    def train(settings):
        order.append("train")
        raise Failed

    monkeypatch.setattr(pretrain, "train", train)
    monkeypatch.setattr(device_memory, "release_device_memory", lambda: order.append("release"))
    with pytest.raises(Failed):
        stages.run_program(PRETRAIN, ["--log_every", "1"])
    assert order == ["train", "release"]


def test_seconds_that_are_counted_are_saved_with_the_next_ones(tmp_path):
    clock = StageTimer(tmp_path / "seconds.json")
    clock.count("choices", 2.04)
    assert clock.seconds == {"choices": 2.0} and not clock.path.exists()
    clock.add("lm", 1)
    assert StageTimer(clock.path).seconds == {"choices": 2.0, "lm": 1.0}


def test_a_place_may_hold_anything_and_printed_commands_can_be_pasted(capsys):
    flags = f"--data_dir {shlex.quote(ODD)} --enc_dec_model {{root}}/lm --num_train_steps 10"
    stage = scale_steps(Stage("x", PRETRAIN, "t", "f", flags), 0.5)
    words = ["--data_dir", ODD.replace("{root}", f"/{ODD}"), "--enc_dec_model", f"/{ODD}/lm", "--num_train_steps", "5"]
    assert stage.argv(Path("/", ODD)) == words
    assert fill("--a {root}/x --b {data}", root="{data}", data="d") == ["--a", "{data}/x", "--b", "d"]
    banner("x", "t", PRETRAIN, words)
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-len(words) :] == words


def test_the_command_that_is_shown_with_a_page_writes_it_again(tmp_path, capsys):
    root = tmp_path / ODD
    root.mkdir()
    (root / "report.html").touch()  # so that none is made
    runs = [root / "joint", root / "diffusion"]
    show_page(root, runs)
    _, python, rest = capsys.readouterr().out.partition("python -m evaluation.report")
    given = parser().parse_args(shlex.split(python + rest.removesuffix(" writes it again)\n"))[3:])
    assert given.runs == runs and given.output == root / "report.html"


def test_a_stage_that_was_evaluated_but_not_finished_is_not_done(programs, chain, tmp_path, capsys, monkeypatch):
    """Every evaluation writes metrics.json. Ended in training, in its last evaluation, and by a limit of its time."""
    from pipelines import train_diffusion

    class Killed(BaseException):
        pass

    flags = (
        f"{programs.data} --device cpu --latent_model_path {chain / 'ae'} --max_seq_len 40 --tx_dim 64 --tx_depth 1 "
        f"--num_train_steps 4 --save_and_sample_every 2 --num_samples 2 --sampling_timesteps 2 --train_batch_size 4 "
        f"--eval_batch_size 4 --lr_warmup_steps 1 --log_every 1 --decoding greedy --scorer {programs.scorer}"
    )
    stage, asked = Stage("diffusion", DIFFUSION, "a tiny denoiser", "metrics.json", flags), []

    def killed(run, state, score):
        asked.append(state.step)
        if len(asked) in (2, 3):
            raise Killed

    monkeypatch.setattr(train_diffusion, "save_if_best", killed)
    assert run_stage(stage, tmp_path, ["--max_seconds", "0"]) == 0
    assert (tmp_path / "diffusion/metrics.json").is_file() and not is_finished(tmp_path / "diffusion")
    for steps in ([1, 2], [1, 2, 2]):
        with pytest.raises(Killed):
            run_stage(stage, tmp_path)
        assert asked == steps and not is_finished(tmp_path / "diffusion")
    assert run_stage(stage, tmp_path) == 0 and asked == [1, 2, 2, 2, 4]
    assert is_finished(tmp_path / "diffusion") and checkpoints.load(tmp_path / "diffusion").step == 4
    capsys.readouterr()
    assert run_stage(stage, tmp_path) == 0 and "already done" in capsys.readouterr().out
    (tmp_path / "diffusion/args.json").write_text("{")
    assert not is_finished(tmp_path / "diffusion") and not is_finished(tmp_path / "nowhere")

"""Gradient accumulation and several ranks give the results of one large batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion.options import ProcessOptions, SamplingOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.cli.programs import DIFFUSION
from pipelines.components import build_components
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.data.latent_datamodule import corpus_cache, make_conditional_latents
from pipelines.data.tokens import tokenize_split
from pipelines.run_context import load_corpus, setup_run
from pipelines.steps.diffusion import DiffusionStep, TimestepSampler
from utils.cli.parse import parse
from utils.distributed import DistContext
from utils.trackers import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("loss", "train/loss", "grad_norm", "learning_rate", "lr", "loss_q0", "loss_q3")
HELD_OUT = ("val_loss", "val_ema_loss", "val/loss", "val/lm_loss")


def curve(folder: Path) -> list[dict[str, float]]:
    """The logged training and validation values."""
    lines = [line for line in read_metrics(folder) if "grad_norm" in line or any(key in line for key in HELD_OUT)]
    return [{key: line[key] for key in (*KEYS, *HELD_OUT) if key in line} for line in lines]


def assert_same_curves(one: Path, other: Path) -> None:
    a, b = curve(one), curve(other)
    assert len(a) == len(b) > 2
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=1e-5, abs=1e-7)


def test_a_step_that_begins_again_is_recorded_once():
    """As after a compiled backward that failed: its losses would count twice."""
    process = make_process(ProcessOptions(schedule_sampler="lossaware"), SamplingOptions(), "latent")
    sampler = TimestepSampler(process, DistContext())
    for seed, micro in ((1, 0), (2, 0), (3, 1)):
        times = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        sampler.record_losses(times, times + seed, micro)
    assert [float(losses[0] - times[0]) for times, losses in sampler.recorded] == pytest.approx([2, 3])


@pytest.mark.parametrize("flags", ["--self_condition", "--self_condition --class_conditional --loss_type l1"])
def test_accumulated_gradients_equal_those_of_the_large_batch(programs, chain, tmp_path, flags):
    argv = (
        f"{programs.data} --device cpu --max_seq_len 40 --tx_dim 64 --tx_depth 2 --disable_dropout --no_wandb "
        f"--latent_model_path {chain / 'ae'} --output_dir {tmp_path} {flags}"
    )
    settings = parse(DIFFUSION, argv.split())
    run = setup_run(settings, "test", "test")
    corpus = load_corpus(run)
    components = build_components(settings, tmp_path, run.device, corpus.num_classes)
    data = tokenize_split(corpus.train, components.space.space.language_model, 40)
    source = make_conditional_latents(run, components.space, None, data, "train", corpus_cache(run))
    gradients, totals = [], []
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4)):
        batch_sampler = TrainingSampler(7, batch_size, accumulate)
        step = DiffusionStep(
            components.model.denoiser,
            source,
            components.process,
            batch_sampler,
            100,
            settings.config.denoiser.self_condition,
        )
        components.model.zero_grad()
        total = 0.0
        for micro in range(batch_sampler.accumulate):
            losses, _ = step(5, micro)
            (losses.sum() / batch_sampler.global_batch_size).backward()
            total += float(losses.sum().detach()) / batch_sampler.global_batch_size
        totals.append(total)
        gradients.append([p.grad.clone() for p in components.model.parameters() if p.grad is not None])
    for total, found in zip(totals[1:], gradients[1:], strict=True):
        assert total == pytest.approx(totals[0], rel=1e-5)
        torch.testing.assert_close(found, gradients[0], rtol=1e-3, atol=1e-6)


def test_programs_with_accumulation_equal_the_large_batch(programs, chain, tmp_path):
    large, small = "--train_batch_size 8", "--train_batch_size 4 --gradient_accumulation_steps 2"
    for name, flags in (("large", large), ("small", small)):
        assert programs.pretrain(tmp_path / f"lm_{name}", flags) == 0
        assert programs.autoencoder(chain / "lm", tmp_path / f"ae_{name}", f"{flags} --lm_mode ft") == 0
        space = f"--latent_model_path {chain / 'ae'}"
        more = "--num_train_steps 4 --disable_dropout --self_condition --normalize_latent --config normalize_batches=2"
        assert programs.diffusion(space, tmp_path / f"diff_{name}", f"{flags} {more}") == 0
    for stage in ("lm", "ae", "diff"):
        assert_same_curves(tmp_path / f"{stage}_large", tmp_path / f"{stage}_small")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_ranks_equal_one(programs, chain, tmp_path, processes):
    """torchrun with two gloo processes of batch 6 or three of batch 4, against this process with batch 12."""
    common = f"{programs.data} --device cpu --log_every 1 --lr_warmup_steps 2 --no_wandb --max_seq_len 40"
    lm = "--vocab_size 200 --d_model 64 --layers 1 --heads 2 --num_train_steps 4 --eval_texts 8"
    ae = (
        f"--enc_dec_model {chain / 'lm'} --num_encoder_latents 4 --dim_ae 64 --num_layers 1 --num_train_steps 4 "
        "--eval_texts 8 --decoding greedy"
    )
    diff = (
        f"--latent_model_path {chain / 'ae'} --tx_dim 64 --tx_depth 2 --num_train_steps 4 --eval_batch_size 8 "
        f"--num_samples 4 --sampling_timesteps 2 --decoding greedy --scorer {programs.scorer} --disable_dropout "
        "--self_condition --normalize_latent --config normalize_batches=2 --save_and_sample_every 1000"
    )
    entries = {
        "lm": ("-m latent_models.pretraining", lm),
        "ae": ("train_latent_model.py", ae),
        "diff": ("train_text_diffusion.py", diff),
    }
    for stage, (entry, flags) in entries.items():
        two, out = tmp_path / f"{stage}_two", tmp_path / f"{stage}_one"
        torchrun = f"-m torch.distributed.run --standalone --nproc_per_node {processes} {entry}"
        argv = f"{torchrun} {common} {flags} --train_batch_size {12 // processes} --output_dir {two}".split()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr[-3000:]
        assert json.loads((two / "args.json").read_text())["num_devices"] == processes
        run = {
            "lm": lambda out: programs.pretrain(out, "--train_batch_size 12"),
            "ae": lambda out: programs.autoencoder(chain / "lm", out, "--train_batch_size 12"),
            "diff": lambda out: programs.diffusion("", out, f"{diff} --train_batch_size 12"),
        }[stage]
        assert run(out) == 0
        assert_same_curves(out, two)
        if stage == "diff":
            assert (two / "greedy-sample-1.txt").read_text() == (out / "greedy-sample-1.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--train_context_encoder"])
def test_two_ranks_equal_one_with_sources(programs, chain, tales_folder, tmp_path, flags):
    files = " ".join(f"--{split}_file {tales_folder / f'pairs_{split}.jsonl'}" for split in ("train", "valid", "test"))
    common = (
        f"{files} --device cpu --log_every 1 --lr_warmup_steps 2 --no_wandb --max_seq_len 40 --tx_dim 64 --tx_depth 2 "
        f"--latent_model_path {chain / 'ae'} --num_train_steps 4 --eval_batch_size 8 --num_samples 4 "
        f"--sampling_timesteps 2 --decoding greedy --scorer {programs.scorer} --disable_dropout --self_condition "
        f"--seq2seq_candidates 2 --save_and_sample_every 2 {flags}"
    )
    two, one = tmp_path / "two", tmp_path / "one"
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2 train_text_diffusion.py"
    argv = f"{torchrun} {common} --train_batch_size 4 --output_dir {two}".split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert programs.diffusion("", one, f"{common} --train_batch_size 8") == 0
    assert_same_curves(one, two)
    best = [json.loads((folder / "best/state.json").read_text())["facts"]["best"] for folder in (one, two)]
    assert best[0]["step"] == best[1]["step"]

"""Draft models: trained for an autoencoder, loaded by every program that decodes its latents, and without effect on
the texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipelines import train_draft_model
from pipelines.cli.programs import DRAFT_MODEL
from pipelines.steps.draft_model import DraftModelStep
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics

STEPS = 20


@pytest.fixture(scope="module")
def drafted(programs, chain, tmp_path_factory) -> Path:
    """A copy of the autoencoder `ae_l2` with a draft model."""
    folder = tmp_path_factory.mktemp("drafted") / "ae"
    shutil.copytree(chain / "ae_l2", folder)
    shutil.copytree(chain / "lm", folder.parent / "lm")
    assert (
        programs.draft_model(
            folder, "--num_train_steps 60 --eval_every 30 --config val_loss_examples=16 --draft_model_dim 64"
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def run(programs, drafted, tmp_path_factory) -> Path:
    """A diffusion run on that autoencoder."""
    folder = tmp_path_factory.mktemp("run") / "diff"
    assert programs.diffusion(f"--latent_model_path {drafted}", folder) == 0
    return folder


def read_texts(run, flags=(), **named):
    """Greedily decoded texts, and (verification passes, texts) of speculative decoding."""
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", argv=flags, eval_batch_size=8, **named)
    texts = pipeline(8, decoding="greedy")
    timer = pipeline.generator.timer
    return texts, (timer.draft_passes, timer.drafted_texts)


def test_training_logs_the_accuracy_of_drafts(drafted):
    lines = read_metrics(drafted / "drafter")
    found = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in found] == [30, 60]
    assert found[1]["val_loss"] < found[0]["val_loss"]
    for line in found:
        assert 0 <= line["val_exact_match"] <= line["val_token_accuracy"] <= 1 <= line["val_verify_passes"] <= 41
    saved = json.loads((drafted / "drafter" / "args.json").read_text())
    assert saved["train_file"] == json.loads((drafted / "args.json").read_text())["train_file"]
    assert saved["max_seq_len"] == 40 and saved["program"] == DRAFT_MODEL.name and saved["space_fingerprint"]


def test_texts_are_the_same_with_and_without_drafts(run, drafted):
    copy = run / "autoencoder" / "drafter"
    assert sorted(p.name for p in copy.iterdir()) == ["args.json", "best"], (
        "a run keeps the flags and the best weights of a draft model"
    )
    with_drafts, (passes, verified) = read_texts(run)
    assert verified == 8 and passes >= 8
    assert read_texts(run, speculative="off") == (with_drafts, (0, 0))
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu")
    assert pipeline(4, decoding="beam") and pipeline.generator.timer.drafted_texts == 0


def test_evaluation_reports_verification_passes(programs, run, drafted, tmp_path):
    flags = "--eval --num_samples 8 --eval_batch_size 8 --decoding greedy"
    assert programs.again("diffusion", run, f"{flags} --output_dir {tmp_path / 'a'}") == 0
    assert programs.again("diffusion", run, f"{flags} --output_dir {tmp_path / 'b'} --speculative off") == 0
    a, b = (json.loads((tmp_path / name / "evaluation" / "eval-valid.json").read_text()) for name in "ab")
    assert a["speed/verify_passes_per_text"] >= 1 and "speed/verify_passes_per_text" not in b
    assert a["model/greedy/local_lm_val_mauve"] == b["model/greedy/local_lm_val_mauve"]
    for name, flag in (("c", ""), ("d", "--speculative off")):
        words = f"--eval --output_dir {tmp_path / name} --eval_texts 8 --decoding greedy {flag}"
        assert programs.again("autoencoder", drafted, words) == 0
    written = [(tmp_path / name / "evaluation" / "eval-valid-samples.json").read_text() for name in "cd"]
    assert written[0] == written[1]


def test_a_draft_model_may_be_trained_later_or_named_by_a_flag(programs, chain, run, drafted, tmp_path, capsys):
    plain, (_, none) = read_texts(chain / "diff")
    assert none == 0
    found, (passes, verified) = read_texts(chain / "diff", draft_model=drafted / "drafter")
    assert found == plain and verified == 8 and passes >= 8
    late = tmp_path / "diff"
    shutil.copytree(chain / "diff", late)
    shutil.copytree(chain / "lm", tmp_path / "lm")
    assert programs.draft_model(late / "autoencoder", f"--latent_cache_dir {tmp_path / 'cache'}") == 0
    assert read_texts(late)[0] == plain and read_texts(late)[1][1] == 8
    with_given = tmp_path / "given"
    flags = f"--draft_model {drafted / 'drafter'}"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", with_given, flags) == 0
    assert (with_given / "autoencoder" / "drafter" / "best").is_dir(), "the run keeps a copy of the named one"
    capsys.readouterr()
    read_texts(with_given)
    assert "note" not in capsys.readouterr().err


def test_a_draft_model_of_another_autoencoder_is_not_used(programs, chain, drafted, tmp_path, capsys):
    with pytest.raises(UserError, match=r"was trained for latents of another autoencoder: leave --draft_model out"):
        programs.again(
            "autoencoder", chain / "ae", f"--eval --output_dir {tmp_path} --draft_model {drafted / 'drafter'}"
        )
    stale = tmp_path / "ae"
    shutil.copytree(chain / "ae", stale)
    shutil.copytree(chain / "lm", tmp_path / "lm")
    shutil.copytree(drafted / "drafter", stale / "drafter")
    assert programs.again("autoencoder", stale, f"--eval --eval_texts 4 --output_dir {tmp_path / 'out'}") == 0
    assert "note: texts are decoded token by token: the draft model in" in capsys.readouterr().err


def test_a_draft_model_of_an_earlier_decoder_gives_the_same_texts_and_a_note(programs, drafted, tmp_path, capsys):
    adapted = tmp_path / "adapted"
    flags = f"--lm_mode decoder --resume_dir {drafted} --max_latent_noise 0.5 --num_train_steps 3"
    assert programs.autoencoder(drafted.parent / "lm", adapted, flags) == 0
    capsys.readouterr()
    for name, flag in (("c", f"--draft_model {drafted / 'drafter'}"), ("d", "")):
        words = f"--eval --output_dir {tmp_path / name} --eval_texts 8 --decoding greedy {flag}"
        assert programs.again("autoencoder", adapted, words) == 0
    assert "was trained for an earlier decoder: text" in capsys.readouterr().err
    written = [(tmp_path / name / "evaluation" / "eval-valid-samples.json").read_text() for name in "cd"]
    assert written[0] == written[1]


def test_mistakes_with_a_draft_model_give_one_error_line(programs, chain, drafted, tmp_path):
    for folder, flag, message in (
        (chain / "states", f"--draft_model {drafted / 'drafter'}", "drafts texts from an autoencoder's latents"),
        (chain / "diff", f"--draft_model {tmp_path / 'none'}", "is not a run folder: there is no such folder"),
        (chain / "diff", f"--draft_model {chain / 'ae'}", "is not the run of a draft model: train one with"),
    ):
        with pytest.raises(UserError, match=message):
            programs.again("diffusion", folder, f"--eval --num_samples 2 --output_dir {tmp_path / 'out'} {flag}")
    with pytest.raises(UserError, match="this command trains a new one: add --eval"):
        programs.autoencoder(chain / "lm", tmp_path / "b", f"--draft_model {drafted / 'drafter'}")
    with pytest.raises(UserError, match="already holds a run: continue it with"):
        programs.draft_model(drafted)
    with pytest.raises(UserError, match="--latent_model_path is missing"):
        train_draft_model.train(parse(DRAFT_MODEL, []))
    with pytest.raises(UserError, match="is not the run of an autoencoder"):
        programs.draft_model(chain / "diff")
    with pytest.raises(UserError, match="--draft_model_dim is 40, which is not a multiple"):
        programs.draft_model(drafted, f"--draft_model_dim 40 --output_dir {tmp_path / 'a'}")
    other = f"--latent_model_path {chain / 'ae'}"
    shutil.copytree(drafted / "drafter", tmp_path / "resumed")
    with pytest.raises(UserError, match="was trained for another autoencoder than"):
        programs.resume("draft_model", tmp_path / "resumed", other)
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_draft_models_resume_exactly(programs, chain, stopped_run, fingerprints, tmp_path):
    flags = f"--num_train_steps {STEPS} --max_latent_noise 0.9"
    flags += " --train_batch_size 8 --gradient_accumulation_steps 2"
    flags += f" --latent_cache_dir {tmp_path / 'cache'} --config val_loss_examples=8 --eval_every 10"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert programs.draft_model(chain / "ae", f"{flags} --output_dir {whole}") == 0
    stopped_run(
        "draft_model",
        DraftModelStep,
        lambda: programs.draft_model(chain / "ae", f"{flags} --output_dir {parts}"),
        parts,
    )
    assert fingerprints(whole) == fingerprints(parts)
    assert checkpoints.load(whole).step == STEPS


def test_a_dry_run_prints_the_parameters_and_writes_no_file(chain, contents, capsys):
    before = contents(chain / "ae")
    words = f"--latent_model_path {chain / 'ae'} --dry_run --verbose --draft_model_depth 3"
    assert train_draft_model.train(parse(DRAFT_MODEL, words.split())) == 0
    out = capsys.readouterr().out
    assert "draft model: blocks.2.down.weight [32, 64]" in out and "truncated" in out
    assert "encoded once, in float16: 123 kB in " in out
    assert "  train texts      102 kB\n  valid texts      20 kB\n" in out
    assert contents(chain / "ae") == before


def test_an_untrained_draft_model_gives_the_same_texts(run):
    pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", eval_batch_size=8)
    plain = pipeline(8, decoding="greedy")
    draft_model = pipeline.generator.space.space.greedy_loop.draft_model
    with torch.no_grad():
        for p in draft_model.parameters():
            p.normal_(generator=torch.Generator().manual_seed(0))
    assert pipeline(8, decoding="greedy") == plain

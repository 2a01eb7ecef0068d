"""Students of runs that predict noise, of token embeddings, and of runs with classes, sources, or both."""

from __future__ import annotations

import json

import pytest
import torch

from diffusion.objectives import to_eps, to_x0
from diffusion.schedules import NoiseLevel, make_continuous_schedule
from pipelines.cli.programs import DIFFUSION
from pipelines.steps.distillation import DistillationStep
from pipelines.steps.teacher import informed_start
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.trackers import read_metrics
from utils.train_eval import eval_mode

EMBEDDINGS = "--latent_space embeddings --embedding_dim 8 --timesteps 40"
DISTILL = "--distill_steps 2 --config distill_substeps=3"


def denoise_at(pipeline, t, n=6):
    """Estimates of x0 by a run at noise of one time."""
    generator = pipeline.generator
    z = torch.randn(n, generator.space.length, generator.space.dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), eval_mode(generator.denoiser):
        return generator.make_denoise_fn(None, None, project=False)(z, torch.tensor([t]), None)


# --------------------------------------------------------------------------------------------------- predicted noise


def test_noise_where_there_is_signal_and_x0_where_there_is_none():
    x0, eps = torch.randn(2, 5, dtype=torch.float64)
    for alpha, prediction in ((0.5, eps), (0.02, eps), (0.001, -x0), (0.0, -x0)):
        level = NoiseLevel(*torch.tensor([alpha, (1 - alpha**2) ** 0.5], dtype=torch.float64))
        z = level.alpha * x0 + level.sigma * eps
        torch.testing.assert_close(to_x0("pred_noise_x0", prediction, z, level), x0)
        torch.testing.assert_close(to_eps("pred_noise_x0", prediction, z, level), eps)


def test_a_teacher_that_predicts_noise_begins_where_there_is_signal():
    schedule = make_continuous_schedule("cosine")
    second = 0.9
    begin = informed_start(schedule, 1.0, second)
    assert second < begin < 1
    ratio = float(schedule(torch.tensor(begin)).alpha / schedule(torch.tensor(second)).alpha)
    assert ratio == pytest.approx(0.25, rel=0.01)


@pytest.fixture(scope="module")
def of_noise(programs, chain, tmp_path_factory):
    """A run that predicts noise, and its student."""
    root = tmp_path_factory.mktemp("noise")
    flags = "--self_condition --num_train_steps 60 --learning_rate 3e-3 --log_every 60"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae_l2'}", root / "t", flags) == 0
    flags = f"{DISTILL} --num_train_steps 120 --learning_rate 3e-3 --ema_decay 0.9 --log_every 10 --disable_dropout"
    assert programs.student(root / "t", root / "s", flags) == 0
    return root


def test_a_student_of_predicted_noise_starts_as_its_teacher_but_at_pure_noise(programs, of_noise, tmp_path):
    assert programs.student(of_noise / "t", tmp_path / "s", f"{DISTILL} --num_train_steps 1 --learning_rate 0") == 0
    saved = json.loads((tmp_path / "s/args.json").read_text())
    assert (saved["objective"], saved["loss_weighting"]) == ("pred_noise_x0", "v")
    teacher, student = (TextDiffusionPipeline.from_pretrained(path) for path in (of_noise / "t", tmp_path / "s"))
    torch.testing.assert_close(denoise_at(teacher, 0.5), denoise_at(student, 0.5))
    assert denoise_at(teacher, 1.0).abs().max() > 10 > 5 > denoise_at(student, 1.0).abs().max()


def test_a_student_of_predicted_noise_learns(of_noise):
    losses = [line["val_ema_loss"] for line in read_metrics(of_noise / "s") if "val_ema_loss" in line]
    assert losses[-1] < losses[0] < 10
    assert len(TextDiffusionPipeline.from_pretrained(of_noise / "s")(2, decoding="greedy")) == 2


def test_a_student_of_a_student_of_predicted_noise(programs, of_noise, tmp_path):
    assert programs.student(of_noise / "s", tmp_path / "one", "--distill_steps 1 --num_train_steps 2") == 0
    assert json.loads((tmp_path / "one/args.json").read_text())["objective"] == "pred_noise_x0"
    assert len(TextDiffusionPipeline.from_pretrained(tmp_path / "one")(2, decoding="greedy")) == 2


# -------------------------------------------------------------------------------------------------------- embeddings


@pytest.fixture(scope="module")
def pairs(tales_folder):
    files = (f"--{split}_file {tales_folder / f'pairs_{split}.jsonl'}" for split in ("train", "valid", "test"))
    return " ".join(files) + " --seq2seq_candidates 1 --max_seq_len 64 --truncate_sources"


SECOND = "--learned_mean_embed --denoise --self_condition --padding masked --seq2seq_unconditional_prob 0.3"
KINDS = {
    "classes": ("--self_condition --class_conditional", "--distill_guidance 2"),
    "pairs": (SECOND, "--distill_guidance 2"),
    "blocks": ("--freeze_embeddings --pretrain_blocks --padding generated --objective pred_v", ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_of_embeddings(programs, pairs, kind, tmp_path, stop_after):
    """The embeddings stay those of the teacher; a resumed student equals an uninterrupted one."""
    flags, guidance = KINDS[kind]
    files = pairs if kind == "pairs" else ""
    assert programs.diffusion(EMBEDDINGS, tmp_path / "t", f"{files} {flags}") == 0
    student = f"{DISTILL} {guidance} --num_train_steps 4 --learning_rate 1e-2 --num_samples 1"
    assert programs.student(tmp_path / "t", tmp_path / "s", student) == 0
    stop_after(DistillationStep, 2)
    assert programs.student(tmp_path / "t", tmp_path / "parts", student) == 143
    assert programs.resume("diffusion", tmp_path / "parts") == 0
    teacher, whole, parts = (checkpoints.load(tmp_path / name).tensors for name in ("t", "s", "parts"))
    for part in ("model", "ema"):
        assert all(torch.equal(whole[part][name], x) for name, x in parts[part].items())
        kept = [name for name in whole[part] if name.startswith(("space.", "absorbing"))]
        assert kept and all(torch.equal(whole[part][name], teacher["ema"][name]) for name in kept)
    changed = [name for name, x in whole["model"].items() if not torch.equal(x, teacher["ema"][name])]
    assert changed and all(name.startswith(("denoiser.", "statistics.")) for name in changed)
    assert all(line.get("loss", 0) < 100 for line in read_metrics(tmp_path / "s"))
    pipeline, seen = TextDiffusionPipeline.from_pretrained(tmp_path / "s", device="cpu"), []
    pipeline.generator.denoiser.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    call = {"source": ["Ben ran to the garden."]} if kind == "pairs" else {"num_samples": 1}
    call |= {"class_id": 1} if kind == "classes" else {}
    assert len(pipeline(**call)) == 1 and len(seen) == 2
    if kind != "blocks":  # evaluated like samples of classes, at the same cost
        assert programs.again("diffusion", tmp_path / "s", f"--eval --num_samples 2 --output_dir {tmp_path / 'e'}") == 0
        found = json.loads((tmp_path / "e/evaluation/eval-valid.json").read_text())
        assert found["protocol"]["network_calls"] == found["protocol"]["sampling_timesteps"] == 2
        assert ("model/seq2seq/rougeL" if kind == "pairs" else "model/greedy/perplexity") in found
    for flag in ("--clamp", "--rejection_rate 0.5"):
        with pytest.raises(UserError, match=f"{flag.split()[0]} rounds each estimate of x0"):
            parse(DIFFUSION, f"--eval --resume_dir {tmp_path / 's'} {flag}".split())


@pytest.mark.slow
def test_a_student_of_embeddings_is_nearer_to_its_teacher_than_two_of_its_steps(programs, pairs, tmp_path):
    """With known sources, an absorbing state and drawn lengths: the two coordinates of a shifted process agree."""
    flags = f"{pairs} --learned_mean_embed --padding masked --self_condition --num_train_steps 100"
    flags += " --learning_rate 3e-3 --log_every 100 --num_samples 1"
    assert programs.diffusion(EMBEDDINGS, tmp_path / "t", flags) == 0
    flags = f"{DISTILL} --num_train_steps 200 --learning_rate 2e-3 --ema_decay 0.9 --log_every 100 --disable_dropout"
    assert programs.student(tmp_path / "t", tmp_path / "s", f"{flags} --num_samples 1") == 0
    losses = [line["val_ema_loss"] for line in read_metrics(tmp_path / "s") if "val_ema_loss" in line]
    assert losses[-1] < losses[0]
    sources = ["Ben ran to the garden.", "Later she gave it to her mother.", "There she spotted a kite."] * 8

    def end(run, **flags):
        pipeline = TextDiffusionPipeline.from_pretrained(run, device="cpu", **flags)
        return pipeline(source=sources, generator=3, output_type="latent").latents.x0

    target = end(tmp_path / "t", sampler="dpmpp", sampling_timesteps=6, time_grid="uniform")
    few = end(tmp_path / "t", sampler="ddim", ddim_sampling_eta=0, sampling_timesteps=2, time_grid="uniform")
    assert (end(tmp_path / "s") - target).square().mean() < 0.8 * (few - target).square().mean()


# ------------------------------------------------------------------------------------------------ classes and sources


def test_distillation_of_a_run_with_classes_and_sources(programs, chain, tales_folder, tmp_path):
    """Predicted noise, guided by both conditions at once."""
    files = []
    for split in ("train", "valid", "test"):
        texts, both = (
            [json.loads(line) for line in (tales_folder / f"{name}{split}.jsonl").open()] for name in ("", "pairs_")
        )
        rows = [{"src": p["src"], "trg": p["trg"], "label": t["label"]} for t, p in zip(texts, both, strict=True)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(f"--{split}_file {tmp_path / split}.jsonl")
    flags = f"{' '.join(files)} --class_conditional --self_condition --seq2seq_candidates 1 --num_samples 2"
    assert programs.diffusion(f"--enc_dec_model {chain / 'lm'} --normalize_latent", tmp_path / "t", flags) == 0
    student = f"{DISTILL} --distill_guidance 2 --num_train_steps 3 --num_samples 2"
    assert programs.student(tmp_path / "t", tmp_path / "s", student) == 0
    pipeline = TextDiffusionPipeline.from_pretrained(tmp_path / "s", device="cpu")
    one, other = (
        pipeline(source=["Ben ran home."], class_id=c, generator=1, output_type="latent").latents.x0 for c in (0, 1)
    )
    assert not torch.equal(one, other)
    with pytest.raises(UserError, match="distilled with a guidance of 2, which is in its weights"):
        pipeline(source=["Ben ran home."], class_id=0, guidance_scale=3)

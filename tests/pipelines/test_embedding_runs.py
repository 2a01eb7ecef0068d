"""Diffusion on token embeddings, whole programs: the embeddings are trained, saved, resumed and loaded again."""

from __future__ import annotations

import json

import pytest
import torch

from pipelines.builders.embeddings import load_embeddings
from pipelines.cli.programs import DIFFUSION
from pipelines.steps.embeddings import EmbeddingLoss, EmbeddingStep, StepNoise
from pipelines.text_diffusion import TextDiffusionPipeline
from utils import checkpoints
from utils.cli.parse import parse
from utils.errors import UserError
from utils.records import Batch
from utils.seeding import SelectedRows
from utils.trackers import read_metrics

SPACE = "--latent_space embeddings --embedding_dim 8 --timesteps 20"


@pytest.fixture(scope="module")
def trained(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings") / "run"
    flags = "--num_train_steps 8 --self_condition --class_conditional --learning_rate 1e-2"
    assert programs.diffusion(SPACE, folder, flags) == 0
    return folder


def test_a_run_saves_space_and_tokenizer_and_logs_each_loss(trained):
    checkpoint, saved = checkpoints.load(trained), json.loads((trained / "args.json").read_text())
    for part in ("model", "ema"):
        assert {"space.vectors.table", "space.bias"} <= checkpoint.tensors[part].keys()
    assert saved["objective"] == "pred_x0" and saved["beta_schedule"] == "sqrt" and saved["decoding"] == "greedy"
    assert (trained / "tokenizer" / "tokenizer.json").is_file()
    assert not (trained / "latent_cache").exists()
    line = next(line for line in read_metrics(trained) if "decoder_nll" in line)
    assert line["loss"] == pytest.approx(line["diffusion"] + line["decoder_nll"] + line["tT_loss"], rel=1e-4)


def test_training_changes_the_embeddings(trained, programs, tmp_path):
    assert programs.diffusion(SPACE, tmp_path / "less", "--num_train_steps 1 --learning_rate 1e-9") == 0
    before, after = (
        checkpoints.load(run).tensors["model"]["space.vectors.table"] for run in (tmp_path / "less", trained)
    )
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize(
    "flags",
    [
        "--self_condition --train_batch_size 8 --gradient_accumulation_steps 2",
        "--normalize_embeddings --padding generated --rounding_head distance --train_batch_size 16",
        "--schedule_sampler lossaware --config importance_bins=3 --train_batch_size 8 --gradient_accumulation_steps 2",
        "--learned_variance --self_condition --self_cond_noise 0.5 --schedule_sampler adaptive "
        "--config importance_bins=3 --train_batch_size 16",
    ],
    ids=["masked", "published", "importance", "hybrid"],
)
def test_diffusion_on_embeddings_resumes_exactly(programs, stop_after, fingerprints, tmp_path, flags):
    flags += " --num_train_steps 12"
    assert programs.diffusion(SPACE, tmp_path / "whole", flags) == 0
    stop_after(EmbeddingStep, 5)
    assert programs.diffusion(SPACE, tmp_path / "parts", flags) == 143
    assert programs.resume("diffusion", tmp_path / "parts") == 0
    assert fingerprints(tmp_path / "whole") == fingerprints(tmp_path / "parts")
    if "lossaware" in flags:
        times = checkpoints.load(tmp_path / "parts").tensors["times"]
        assert times["counts"].sum() == 12 * 16 and times["counts"].min() >= 10  # no longer uniform


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_like_float32(programs, tmp_path, precision):
    """DiffuSeq-v2's --use_fp16, also where there is no GPU: losses of the same size, weights kept in float32."""
    flags = "--learned_mean_embed --denoise --denoise_rate 0.5 --self_condition --num_train_steps 6 --disable_dropout"
    for name, cast in (("whole", "no"), ("half", precision)):
        assert programs.diffusion(SPACE, tmp_path / name, f"{flags} --mixed_precision {cast}") == 0
    whole, half = (
        [line["loss"] for line in read_metrics(tmp_path / name) if "learning_rate" in line]
        for name in ("whole", "half")
    )
    assert len(whole) == 6 and half == pytest.approx(whole, rel=0.05) and half != whole
    assert all(x.dtype == torch.float32 for x in checkpoints.load(tmp_path / "half").tensors["model"].values())
    texts = TextDiffusionPipeline.from_pretrained(tmp_path / "half", device="cpu", mixed_precision=precision)(2, seed=3)
    assert len(texts) == 2


def test_reloaded_run_samples_what_the_training_sampled(trained):
    pipeline = TextDiffusionPipeline.from_pretrained(trained, device="cpu")
    again = TextDiffusionPipeline.from_pretrained(trained, device="cpu")
    texts = pipeline(4, seed=3, decoding="greedy")
    assert texts == again(4, seed=3, decoding="greedy") and len(texts) == 4
    latents, same = pipeline.encode(["Anna saw a red bird ."]), again.encode(["Anna saw a red bird ."])
    assert torch.equal(latents.x0, same.x0) and len(pipeline.decode(latents)) == 1
    torch.testing.assert_close(pipeline.generator.space.project(latents.x0)[latents.mask], latents.x0[latents.mask])


def test_eval_evaluates_a_run_on_embeddings(trained, programs, tmp_path):
    assert programs.again("diffusion", trained, f"--eval --output_dir {tmp_path} --sampler ddim") == 0
    result = json.loads((tmp_path / "evaluation" / "eval-valid.json").read_text())
    assert result["model/greedy/perplexity"] > 1


def test_padding_never_changes_a_loss(trained):
    """The same texts in a space of more positions: every loss is the same."""
    settings = parse(DIFFUSION, ["--eval", "--resume_dir", str(trained)])
    pipeline = TextDiffusionPipeline.from_pretrained(trained, device="cpu")
    process, denoiser = pipeline.generator.process, pipeline.generator.denoiser
    torch.manual_seed(0)
    losses = []
    for length in (12, 40):
        settings.set("max_seq_len", length)
        space = load_embeddings(settings, trained, process.train_schedule, [], torch.device("cpu"))
        space.load_state_dict(pipeline.generator.space.space.state_dict())
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(2, 2, 40, 8, generator=generator)[:, :, :length]
        noise[:, :, 7:] = torch.randn(2, 2, length - 7, 8)  # noise at padding differs
        batch = Batch(torch.randint(5, 20, (2, 7), generator=generator), torch.ones(2, 7, dtype=torch.bool))
        t = torch.tensor([0.05, 0.7])
        with torch.no_grad():
            denoiser.eval()
            loss = EmbeddingLoss(denoiser, space, process)
            self_cond_rows = SelectedRows(torch.tensor([True, False]), torch.tensor([0]))
            losses.append(loss(batch, StepNoise(t, noise[0], noise[1], self_cond_rows), None))
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--latent_space embeddings --normalize_latent", "--normalize_latent applies to latents of a frozen model"),
        ("--latent_space embeddings --latent_model_path x", "--latent_model_path applies to latents of a frozen model"),
        ("--latent_space embeddings --decoding beam", "--decoding beam needs a language model"),
        ("--latent_space compressed", "needs an autoencoder"),
        ("--embedding_dim 8", "--embedding_dim applies to token embeddings: add --latent_space embeddings"),
    ],
)
def test_flags_that_exclude_each_other_give_one_error_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        parse(DIFFUSION, flags.split())
    assert "\n" not in str(error.value)


def test_a_vocabulary_with_too_many_unknown_words_is_rejected(programs, tmp_path):
    with pytest.raises(UserError, match=r"lacks \d+\.\d % of the words"):
        programs.diffusion(SPACE, tmp_path / "run", "--vocab_size 12")


def test_another_tokenizer_is_rejected(trained, programs, tmp_path):
    saved = json.loads((trained / "args.json").read_text())
    assert saved["tokenizer_fingerprint"]
    file = trained / "tokenizer" / "tokenizer.json"
    original = file.read_text()
    try:
        file.write_text(original.replace('"NFC"', '"NFKC"'))
        with pytest.raises(UserError, match="another tokenizer"):
            programs.again("diffusion", trained, f"--eval --output_dir {tmp_path}")
    finally:
        file.write_text(original)

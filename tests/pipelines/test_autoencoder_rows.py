"""Autoencoders in real runs: losses and augmentations, one latent per token, what latents decide, and selection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from latent_models.autoencoders.losses import LATENT_LOSSES
from latent_models.language_models import LanguageModel
from latent_models.spaces.compressed import CompressedSpace
from latent_models.text_encoders import TextEncoder
from pipelines import train_autoencoder
from pipelines.cli.programs import AUTOENCODER
from pipelines.data.alignment import load_encode_before_training
from pipelines.data.tokens import make_batch, tokenize_split
from pipelines.evaluators.autoencoder import AutoencoderEvaluator
from pipelines.evaluators.replaced_latents import LatentStatistics, replaced
from pipelines.run_context import setup_run
from pipelines.steps.autoencoder import AutoencoderStep
from tests.tiny_models import tiny_encoder
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.errors import UserError
from utils.local_models import RECORD, file_sha256
from utils.records import Latents
from utils.run_folder import write_json
from utils.trackers import read_metrics

EVERY_ROW = (
    "--feature_matching_weight 0.5 --alignment_weight 0.5 --config alignment_layer=0 --kl_weight 0.01 "
    "--state_mask_prob 0.2 --state_noise 0.1 --latent_mask_prob 0.2 --token_dropout 0.2 "
    "--max_latent_noise 0.5 --noise_level_conditioning --train_batch_size 8 --gradient_accumulation_steps 2 "
    "--num_train_steps 16 --eval_every 8 --lr_warmup_steps 2 --learning_rate 1e-3"
)


@pytest.fixture(scope="module")
def robust(programs, chain, tmp_path_factory):
    """A run with every loss and augmentation."""
    folder = tmp_path_factory.mktemp("robust") / "ae"
    assert programs.autoencoder(chain / "lm", folder, EVERY_ROW) == 0
    return folder


def train_per_token(programs, lm, out, flags) -> int:
    """With the flags of `programs.autoencoder` but for the number of latents."""
    own = (
        f"{programs.data} --enc_dec_model {lm} --output_dir {out} --autoencoder per_token --device cpu --no_wandb "
        "--lr_warmup_steps 2 --mixed_precision no --max_seq_len 40 --dim_ae 64 --num_layers 1 --train_batch_size 16 "
        f"--log_every 1 --eval_texts 8 --decoding greedy {flags}"
    )
    return train_autoencoder.train(parse(AUTOENCODER, own.split()))


@pytest.fixture(scope="module")
def per_token(programs, chain, tmp_path_factory):
    """A run with one latent per token, and a denoiser of its latents."""
    root = tmp_path_factory.mktemp("per_token")
    flags = "--max_latent_noise 0.4 --num_train_steps 30 --learning_rate 5e-3"
    assert train_per_token(programs, chain / "lm", root / "ae", flags) == 0
    assert programs.diffusion(f"--latent_model_path {root / 'ae'}", root / "diff", "--normalize_latent") == 0
    return root


def test_every_row_trains_and_resumes_exactly(programs, chain, robust, stopped_run, fingerprints, tmp_path):
    stopped_run(
        "autoencoder",
        AutoencoderStep,
        lambda: programs.autoencoder(chain / "lm", tmp_path / "parts", EVERY_ROW),
        tmp_path / "parts",
    )
    assert fingerprints(tmp_path / "parts") == fingerprints(robust)
    lines = [line for line in read_metrics(robust) if "kl" in line]
    assert len(lines) == 16 and all(name in lines[0] for name in ("reconstruction", *LATENT_LOSSES))
    assert all(0 < line["alignment"] < 2 for line in lines)
    assert lines[-1]["feature_matching"] < lines[0]["feature_matching"]


def test_a_language_model_that_trains_predicts_its_states_before_training(programs, chain, fingerprints, tmp_path):
    name, options = str(chain / "lm"), "--feature_matching_weight 0.5 --alignment_weight 0.5"

    def encode(flags, alignment=None):
        settings = parse(AUTOENCODER, f"--train_file x --enc_dec_model {name} {flags}".split())
        return load_encode_before_training(settings.config, name, alignment, torch.device("cpu"))

    assert encode(options) is None and encode("--lm_mode ft --alignment_weight 0.5") is None
    ids, mask = torch.randint(5, 50, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    before = LanguageModel.from_pretrained(name).eval()
    torch.testing.assert_close(encode(f"--lm_mode ft {options}")(ids, mask), before.encode(ids, mask))
    shared = TextEncoder.from_pretrained(name)
    assert encode(f"--lm_mode ft {options}", shared).__self__ is shared, "one copy serves both losses"
    assert encode(f"--lm_mode ft {options} --config alignment_layer=0", shared).__self__ is not shared
    flags = f"--lm_mode ft {options} --num_train_steps 2 --eval_texts 2"
    assert programs.autoencoder(chain / "lm", tmp_path / "whole", flags) == 0
    assert programs.autoencoder(chain / "lm", tmp_path / "half", f"{flags} --max_seconds 0") == 0
    assert programs.resume("autoencoder", tmp_path / "half") == 0
    assert fingerprints(tmp_path / "half")[1] == fingerprints(tmp_path / "whole")[1], "the same states after a resume"
    assert any("feature_matching" in line for line in read_metrics(tmp_path / "whole"))


def test_such_a_run_loads_without_flags_and_is_read_by_a_denoiser(programs, robust, tmp_path):
    space = CompressedSpace.from_pretrained(robust)
    assert read_args(robust)["alignment_dim"] == 64
    batch = make_batch(space, ["Ben ran to the garden one warm night."], 40)
    with torch.no_grad():
        assert torch.equal(space.encode(batch).x0, space.encode(batch).x0), "diffusion sees the means"
    assert programs.diffusion(f"--latent_model_path {robust}", tmp_path / "diff") == 0
    assert programs.again("diffusion", tmp_path / "diff", "--eval --decoder_noise 0.3") == 0
    assert programs.again("diffusion", tmp_path / "diff", "--eval") == 0


def test_a_decoder_without_the_heads_of_its_losses_trains_on(programs, chain, robust, tmp_path):
    flags = f"--lm_mode decoder --resume_dir {robust} --kl_weight 0.01 --eval_every 100"
    assert programs.autoencoder(chain / "lm", tmp_path / "decoder", flags) == 0
    before, after = CompressedSpace.from_pretrained(robust), CompressedSpace.from_pretrained(tmp_path / "decoder")
    assert before.encoding_fingerprint() == after.encoding_fingerprint()


def test_one_latent_per_token_from_texts_to_samples(programs, per_token, tmp_path):
    space = CompressedSpace.from_pretrained(per_token / "ae")
    assert space.variable_length and space.length == 40
    found = read_args(per_token / "diff")
    assert (found["latent_dim"], found["latent_length"]) == (64, 40)
    assert programs.again("diffusion", per_token / "diff", "--eval --num_samples 8") == 0
    samples = json.loads(next((per_token / "diff/evaluation").glob("*greedy-samples.json")).read_text())
    assert len(samples) == 8
    folder = tmp_path / "ae"
    shutil.copytree(per_token / "ae", folder)
    flags = f"--eval --eval_interpolation --eval_recovery --eval_texts 6 --scorer {programs.scorer}"
    assert programs.again("autoencoder", folder, flags) == 0
    metrics = json.loads((folder / "evaluation/eval-valid.json").read_text())
    assert metrics["midpoints/greedy/perplexity"] > 1 and metrics["noise/margin_0.2"] > 0


def test_a_decoder_of_one_latent_per_token_is_adapted_to_its_denoiser(programs, chain, per_token, tmp_path):
    flags = (
        f"--lm_mode decoder --resume_dir {per_token / 'ae'} --denoiser_run {per_token / 'diff'} --num_train_steps 4 "
        "--config denoiser_steps=2"
    )
    assert train_per_token(programs, chain / "lm", tmp_path / "decoder", flags) == 0
    assert programs.again("diffusion", per_token / "diff", f"--eval --latent_model_path {tmp_path / 'decoder'}") == 0


def test_flags_that_contradict_each_other_are_refused(programs, chain, tmp_path):
    for flags, message in {
        "--autoencoder per_token": "--num_encoder_latents 4: --autoencoder per_token has one latent for each token",
        "--kl_weight 1 --l2_normalize_latents": "--kl_weight gives latents a mean and a variance",
        "--eval_recovery": "--eval_recovery evaluates a trained autoencoder.*--best_metric recovery",
        "--alignment_weight 1 --alignment_model nowhere/at/all": "--alignment_model nowhere/at/all",
        "--alignment_weight 1 --config alignment_layer=9": "--alignment_layer 9.*has 1 layers",
        "--best_metric imov": "--best_metric imov is no validation metric.*imauve",
    }.items():
        with pytest.raises(UserError, match=message):
            programs.autoencoder(chain / "lm", tmp_path / "out", flags)


# ------------------------------------------------------------------------------------------- what the latents decide

PAIRS = ("greedy", "sample", "samples", "swapped")
DECIDED = {f"decoder/{pair}/{key}" for pair in PAIRS for key in ("similarity", "bleu", "rougeL")}
DECIDED |= {"decoder/loss_clean", "decoder/loss_without_latents", "decoder/share_of_latents"}


def evaluator_of(run: Path, out: Path, flags: str = "") -> AutoencoderEvaluator:
    """Of a trained run, as --eval makes it."""
    words = f"--eval --resume_dir {run} --output_dir {out} --no_wandb --device cpu --eval_texts 20 {flags}"
    context = setup_run(parse(AUTOENCODER, words.split()), "latent_finetuning", "autoencoder")
    space = CompressedSpace.from_pretrained(run)
    return AutoencoderEvaluator(context, space, tokenize_split(context.corpus.valid, space.language_model, 40))


def test_every_validation_measures_what_latents_decide(chain):
    logged = [line for line in read_metrics(chain / "ae") if "decoder/loss_clean" in line]
    written = json.loads((chain / "ae/validation.json").read_text())
    assert {key: written[key] for key in DECIDED} == {key: logged[-1][key] for key in DECIDED}
    similarity = written["protocol"]["similarity"]
    assert similarity["part_of_system"] and similarity["pooling"] == "latents"
    assert written["protocol"]["compared_texts"] == 8 and "spelling" in written["protocol"]
    rows = json.loads((chain / "ae/validation-samples.json").read_text())
    assert len(rows) == 8 and {"decoder/nucleus", "decoder/nucleus, second"} <= rows[0].keys()
    assert "decoder/greedy" not in rows[0] and rows[0]["text"] == rows[0]["autoencoder/greedy"], "decoded once"


def test_more_texts_than_are_compared(chain, monkeypatch, tmp_path):
    monkeypatch.setattr("pipelines.evaluators.autoencoder.NUM_COMPARED", 5)
    evaluator = evaluator_of(chain / "ae", tmp_path, "--decoding nucleus")
    evaluator.record(evaluator.evaluate_latents(), 0)
    evaluator.write(tmp_path, "found")
    rows = json.loads((tmp_path / "found-samples.json").read_text())
    assert ["decoder/greedy" in row for row in rows] == [True] * 5 + [False] * 15
    assert all("autoencoder/nucleus" in row and row["text"] == row["autoencoder/nucleus"] for row in rows)
    assert json.loads((tmp_path / "found.json").read_text())["protocol"]["compared_texts"] == 5
    assert not evaluator_of(chain / "ae", tmp_path, "--eval_texts 1").evaluate_latents().keys() & DECIDED


@pytest.mark.parametrize("kind", ["perceiver", "normalized", "per_token"])
def test_a_decoder_that_ignores_its_latents_has_one_loss_with_and_without(kind, chain, per_token, tmp_path):
    run = {"perceiver": chain / "ae", "normalized": chain / "ae_l2", "per_token": per_token / "ae"}[kind]
    evaluator = evaluator_of(run, tmp_path)
    before = evaluator.losses_without_latents()
    assert before == evaluator.losses_without_latents(), "the noise is always the same"
    assert before["decoder/loss_clean"] != before["decoder/loss_without_latents"]
    with torch.no_grad():
        for p in evaluator.space.autoencoder.decoder.parameters():
            p.zero_()
    found = evaluator.evaluate_latents()
    assert found["decoder/loss_clean"] == pytest.approx(found["decoder/loss_without_latents"], abs=1e-5)
    assert found["decoder/share_of_latents"] == pytest.approx(0, abs=1e-5), "every text is decoded alike"


def test_a_trained_decoder_needs_its_latents(programs, chain, tmp_path):
    flags = "--num_train_steps 120 --learning_rate 5e-3 --token_dropout 0.5 --eval_every 120 --log_every 60"
    assert train_per_token(programs, chain / "lm", tmp_path / "ae", flags) == 0
    found = json.loads((tmp_path / "ae/validation.json").read_text())
    assert found["decoder/loss_without_latents"] > found["decoder/loss_clean"] + 0.1


def test_noise_in_place_of_latents_has_their_mean_and_deviation(chain, tmp_path):
    space = evaluator_of(chain / "ae", tmp_path).space
    x0 = 3 + 2 * torch.randn(500, space.length, space.dim)
    latents = Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool))
    statistics = LatentStatistics.of([latents[:200], latents[200:]], variable_length=False)
    noise = replaced(space, latents, statistics, torch.randn(x0.shape)).x0
    assert statistics.mean.shape == x0.shape[1:]
    assert float(noise.mean()) == pytest.approx(3, abs=0.05) and float(noise.std()) == pytest.approx(2, abs=0.05)
    latents.mask[:, 1:] = False
    x0[:, 1:] = 100.0  # padding does not count
    statistics = LatentStatistics.of([latents], variable_length=True)
    assert statistics.mean.shape == (space.dim,) and float(statistics.mean.max()) < 4


def test_another_encoder_compares_texts(programs, chain, monkeypatch, tmp_path):
    """That of --mauve_encoder, else minilm-l6 where it has been made."""
    texts = [json.loads(line)["text"] for line in (programs.corpus / "train.jsonl").open()]
    default = tmp_path / "models/minilm-l6"
    tiny_encoder(default, texts)
    shutil.copytree(default, tmp_path / "other")
    monkeypatch.setenv("LATENT_DIFFUSION_MODELS", str(tmp_path / "models"))
    for flags, name in {
        f"--mauve_encoder {tmp_path / 'other'}": "other",
        "": str(chain / "lm"),  # the folder was not made by latent_models.pretrained
        "--mauve_encoder none": str(chain / "lm"),
    }.items():
        similarity = evaluator_of(chain / "ae", tmp_path / "out", flags).evaluate_latents()["protocol"]["similarity"]
        assert similarity["name"] == name and similarity["part_of_system"] is (name != "other")
    hashes = {path.name: file_sha256(path) for path in default.iterdir()}
    write_json(default / RECORD, {"name": "minilm-l6", "sha256": hashes})
    for flags, name in {"": "minilm-l6", "--mauve_encoder none": str(chain / "lm")}.items():
        vectors = evaluator_of(chain / "ae", tmp_path / "out", flags).vectors
        assert vectors.protocol["name"] == name
    with pytest.raises(UserError, match="--mauve_encoder"):
        evaluator_of(chain / "ae", tmp_path / "out", "--mauve_encoder /no/where")


# ------------------------------------------------------------------------------------------------- selection


def test_the_best_checkpoint_by_recovery_and_by_imauve(programs, chain, tmp_path):
    pytest.importorskip("mauve")
    flags = f"--num_train_steps 4 --eval_every 2 --scorer {programs.scorer} --learning_rate 5e-3"
    for metric, key in {
        "recovery": "noise/greedy/recovery",
        "imauve": "midpoints/greedy/local_lm_imauve",
        "midpoints/perplexity": "midpoints/greedy/perplexity",
    }.items():
        folder = tmp_path / metric.replace("/", "_")
        assert programs.autoencoder(chain / "lm", folder, f"{flags} --best_metric {metric}") == 0
        lines = {line["step"]: line[key] for line in read_metrics(folder) if key in line}
        choose = min if metric.endswith("perplexity") else max
        best = checkpoints.load_best(folder)
        assert set(lines) == {2, 4} and best.metadata["best"]["metric"] == metric
        assert lines[best.step] == choose(lines.values()) == best.metadata["best"]["value"]

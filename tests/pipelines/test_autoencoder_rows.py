"""Losses and augmentations of autoencoders in real runs, one latent per token, and selection beside reconstruction."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from latent_models.autoencoders.losses import LATENT_LOSSES
from latent_models.spaces.compressed import CompressedSpace
from pipelines import train_autoencoder
from pipelines.cli.programs import AUTOENCODER
from pipelines.data.tokens import make_batch
from pipelines.steps.autoencoder import AutoencoderStep
from utils import checkpoints
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.errors import UserError
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

"""One note names all flags without effect. Also: columns, ranges, and the precision of accelerate launch."""

from __future__ import annotations

import pytest
import torch

from model.encoder_denoiser import SinusoidalTimeEmbedding
from pipelines.cli.programs import AUTOENCODER, CAUSAL_LM, CLASSIFIER, DIFFUSION, DRAFT_MODEL, PRETRAIN, SEQ2SEQ
from utils.cli.parse import parse
from utils.errors import UserError

DATA = "--dataset_name tales"


@pytest.mark.parametrize(
    "program", [DIFFUSION, AUTOENCODER, PRETRAIN, CLASSIFIER, DRAFT_MODEL, CAUSAL_LM, SEQ2SEQ], ids=lambda p: p.name
)
def test_the_values_that_a_flag_needs_are_choices_of_the_other_flag(program):
    for flag in program.flags.values():
        if flag.needed and flag.needed[0] in program.flags:
            other, values = flag.needed
            choices = program.flags[other].choices
            assert values in ((), (None,), (False,)) or choices and set(values) < set(choices), flag.name


@pytest.mark.parametrize(
    "program, typed, message",
    [
        (DIFFUSION, "--train_prob_self_cond 0.3", "--train_prob_self_cond has an effect only with --self_condition"),
        (DIFFUSION, "--train_prob_self_cond 0.3 --self_condition", None),
        (DIFFUSION, "--train_prob_self_cond 0.5", None),
        (DIFFUSION, "--config grid_rho=3", "--grid_rho has an effect only with --time_grid karras"),
        (DIFFUSION, "--grid_shift 2 --time_grid shifted", None),
        (DIFFUSION, "--scale 0.5 --beta_schedule linear", "--scale has an effect only without --beta_schedule"),
        (
            DIFFUSION,
            "--tx_dim 64 --denoiser_variant encoder",
            "--tx_dim has an effect only with --denoiser_variant latent or",
        ),
        (DIFFUSION, "--config muon_momentum=0.9", "--muon_momentum has an effect only with --optimizer muon"),
        (AUTOENCODER, "--latent_noise_prob 0.1", "--latent_noise_prob has an effect only with --max_latent_noise"),
        (AUTOENCODER, "--latent_noise_prob 0.1 --max_latent_noise 0.3", None),
        (PRETRAIN, "--config muon_momentum=0.9 --optimizer muon", None),
    ],
)
def test_a_flag_without_effect_is_named_in_one_note(program, typed, message, capsys):
    parse(program, f"{DATA} {typed}".split())
    errors = capsys.readouterr().err
    assert ("note: these flags have no effect here: " + message in errors) if message else errors == ""


def test_a_learned_variance_that_the_sampler_does_not_read_is_named(capsys):
    learned = f"{DATA} --beta_schedule cosine --learned_variance"
    parse(DIFFUSION, f"{learned} --sampler ddpm".split())
    assert capsys.readouterr().err == ""
    parse(DIFFUSION, f"{learned} --sampler dpmpp".split())
    assert "--learned_variance with --sampler dpmpp: only ddpm reads the variance" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "width", "fits"), [
    ("ddpm", 128, True), ("ddpm", 4, True), ("ddpm", 129, False), ("ddpm", 2, False), ("improved_ddpm", 129, True),
    ("improved_ddpm", 3, False),
])  # fmt: skip
def test_a_width_that_cannot_hold_the_sinusoids_of_a_noise_level_is_refused(kind, width, fits):
    flags = f"{DATA} --denoiser_variant encoder --config encoder_time_dim={width} --config encoder_sinusoids={kind}"
    if fits:
        parse(DIFFUSION, flags.split())
        assert SinusoidalTimeEmbedding(width, 8, kind)(torch.rand(3)).shape == (3, 8)
        return
    with pytest.raises(UserError, match=f"encoder_time_dim={width} has no room .* give an even number of 4 or more"):
        parse(DIFFUSION, flags.split())


@pytest.mark.parametrize("flag", ["label_column", "source_column"])
def test_the_text_none_switches_a_column_off_and_is_not_the_default(flag):
    """By default the column is found by its name."""
    for program in (DIFFUSION, AUTOENCODER, PRETRAIN, CLASSIFIER, DRAFT_MODEL, CAUSAL_LM, SEQ2SEQ):
        assert parse(program, [f"--{flag}", "none"]).values[flag] == "none"
        assert parse(program, []).values[flag] is None


def test_a_negative_power_is_rejected(capsys):
    with pytest.raises(ValueError, match="--polynomial_T_power must be at least 0"):
        parse(DIFFUSION, f"{DATA} --T_schedule polynomial --polynomial_T_power -2".split())


def test_the_precision_of_accelerate_launch_counts_unless_a_flag_or_a_file_gives_another(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    file = tmp_path / "config.json"
    file.write_text('{"mixed_precision": "fp16"}')
    for words, precision, source in (
        ("", "bf16", "launcher"),
        ("--mixed_precision no", "no", "flag"),
        (f"--config {file}", "fp16", "config"),
    ):
        settings = parse(DIFFUSION, f"{DATA} {words}".split())
        assert settings.get("mixed_precision") == precision and settings.origins["mixed_precision"] == source
        assert ("mixed_precision" in settings.explicit) == (source != "launcher")

"""Flags that mean nothing where they stand are named in one line, and refuse nothing."""

from __future__ import annotations

import pytest

from pipelines.cli.programs import AUTOENCODER, CLASSIFIER, DIFFUSION, DRAFT_MODEL, PRETRAIN
from pipelines.cli.unused_flags import NEEDS, ON
from utils.cli.parse import parse

DATA = "--dataset_name tales"


@pytest.mark.parametrize("flag", NEEDS)
def test_the_table_names_flags_and_their_choices(flag):
    other, values = NEEDS[flag]
    programs = [p for p in (DIFFUSION, AUTOENCODER, PRETRAIN, CLASSIFIER) if {flag, other} <= p.flags.keys()]
    assert programs
    for program in programs:
        choices = program.flags[other].choices
        assert values in (ON, (None,), (False,)) or choices and set(values) < set(choices)


@pytest.mark.parametrize(
    "program, typed, said",
    [
        (DIFFUSION, "--train_prob_self_cond 0.3", "--train_prob_self_cond counts only with --self_condition"),
        (DIFFUSION, "--train_prob_self_cond 0.3 --self_condition", None),
        (DIFFUSION, "--train_prob_self_cond 0.5", None),
        (DIFFUSION, "--config grid_rho=3", "--config grid_rho counts only with --time_grid karras"),
        (DIFFUSION, "--grid_shift 2 --time_grid shifted", None),
        (DIFFUSION, "--scale 0.5 --beta_schedule linear", "--scale counts only without --beta_schedule"),
        (DIFFUSION, "--tx_dim 64 --denoiser_variant encoder", "--tx_dim counts only with --denoiser_variant latent or"),
        (DIFFUSION, "--muon_momentum 0.9", "--muon_momentum counts only with --optimizer muon"),
        (AUTOENCODER, "--latent_noise_prob 0.1", "--latent_noise_prob counts only with --max_latent_noise"),
        (AUTOENCODER, "--latent_noise_prob 0.1 --max_latent_noise 0.3", None),
        (PRETRAIN, "--muon_momentum 0.9 --optimizer muon", None),
    ],
)
def test_what_counts_for_nothing_is_said(program, typed, said, capsys):
    parse(program, f"{DATA} {typed}".split())
    errors = capsys.readouterr().err
    assert ("note: without effect here: " + said in errors) if said else errors == ""


@pytest.mark.parametrize("flag", ["label_column", "source_column"])
def test_a_column_that_is_not_to_be_used_is_not_one_to_be_found(flag):
    """Unset, it is found by its name."""
    for program in (DIFFUSION, AUTOENCODER, PRETRAIN, CLASSIFIER, DRAFT_MODEL):
        assert parse(program, [f"--{flag}", "none"]).values[flag] == "none"
        assert parse(program, []).values[flag] is None


def test_a_power_below_zero_has_no_beginning(capsys):
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
        assert settings.get("mixed_precision") == precision and settings.sources["mixed_precision"] == source
        assert ("mixed_precision" in settings.explicit) == (source != "launcher")

"""The rows of the study of real text: their commands, to the flags that are quoted for a stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.real_text_rows import ROWS, Models, row_flags, sampled_run
from pipelines.builders.diffusion_process import make_process
from pipelines.recipe.arguments import parser, typed_choices
from pipelines.recipe.checks import rules_without_folders
from pipelines.recipe.corpus_facts import CorpusFacts
from pipelines.recipe.plan import Machine, Steps, choose, shares
from pipelines.recipe.stages import Setting, make_stage
from utils.cli.parse import check_flags

CAPTIONS = CorpusFacts(texts=60_000, held_out=1_000, words=12, tokens=38, sentences=1, most_sentences=1)
STEPS = Steps(100, 32, 8, 0.9, 60.0, 1.0)
# what the autoencoder of a row has that is not that of `published`
LEVERS = {
    "robust-autoencoder": {"max_latent_noise"},
    "matched-autoencoder": {"feature_matching_weight", "state_mask_prob", "latent_mask_prob"},
    "aligned-autoencoder": {"alignment_weight"},
    "conditioned-autoencoder": {"max_latent_noise", "noise_level_conditioning"},
    "variational-autoencoder": {"kl_weight", "l2_normalize_latents"},
    "token-dropout-autoencoder": {"token_dropout"},
    "latent-mask-autoencoder": {"latent_mask_prob"},
    "state-noise-autoencoder": {"state_noise"},
    "state-mask-autoencoder": {"state_mask_prob"},
    "per-token-autoencoder": {"autoencoder", "num_encoder_latents"},
    "joint": set(),
    "adapted-decoder": set(),
    "causal-decoder": set(),
}


def setting_of(name: str, root: Path) -> Setting:
    words = row_flags(name, root, Models("lm", "encoder"))
    args = parser().parse_args(["--train_file", "x", "--minutes", "60", "--output_dir", str(root), *words])
    given = typed_choices(args)
    choices = choose(CAPTIONS, Machine("lm", "encoder", 400), 3600, given)
    return Setting("--train_file x", choices, "lm", "encoder", False, given)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.program == "recipe"])
def test_every_stage_of_a_row_has_flags_of_its_program(name, tmp_path):
    """A mistake in a late stage would end a row after most of its minutes."""
    setting = setting_of(name, tmp_path)
    for stage in (make_stage(stage, setting, STEPS) for stage in shares(setting.choices)):
        found = check_flags(stage.program, stage.argv(tmp_path), rules_without_folders(stage.program))
        if stage.name == "diffusion":
            config = found.config
            process = make_process(config.process, config.sampling, config.denoiser.denoiser_variant)
            times = process.grid(config.sampling.sampling_timesteps)
            assert len(times) == 33 and times.diff().max() < 0


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_of_the_autoencoder_is_all_that_its_row_changes(name, tmp_path):
    found, published = (
        check_flags(stage.program, stage.argv(tmp_path)).values
        for stage in (make_stage("autoencoder", setting_of(row, tmp_path), STEPS) for row in (name, "published"))
    )
    assert {flag for flag, value in found.items() if value != published[flag]} == LEVERS[name]
    assert {row for row in ROWS if ROWS[row].what.startswith("published,")} <= LEVERS.keys()


@pytest.mark.parametrize("name", ["published", *LEVERS])
def test_the_published_row_and_its_levers_have_the_published_denoiser(name, tmp_path):
    stage = make_stage("diffusion", setting_of(name, tmp_path), STEPS)
    config = check_flags(stage.program, stage.argv(tmp_path), rules_without_folders(stage.program)).config
    assert config.denoiser.denoiser_variant == "latent" and not config.denoiser.linear_denoiser
    assert (config.sampling.sampler, config.sampling.time_grid) == ("ddpm", "uniform")


def test_a_row_is_sampled_from_the_run_in_which_its_denoiser_trained_last(tmp_path):
    assert sampled_run(tmp_path) == tmp_path
    (tmp_path / "recipe.json").touch()
    assert sampled_run(tmp_path) == tmp_path / "diffusion"
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "args.json").touch()
    assert sampled_run(tmp_path) == tmp_path / "joint"

"""A preset sets a row of flags. Typed flags take precedence over it, and it takes precedence over saved flags."""

from __future__ import annotations

import pytest

from diffusion.options import SamplingOptions
from pipelines import sample, train_diffusion
from pipelines.cli.presets import PRESETS
from pipelines.cli.programs import DIFFUSION
from pipelines.sampling.generator import TextGenerator
from pipelines.text_diffusion import TextDiffusionPipeline
from utils.cli.parse import parse

BASE = "--train_file t --valid_file v --test_file t"


def test_all_presets_set_the_same_flags():
    names = {name for row in PRESETS.values() for name in row}
    assert names <= set(DIFFUSION.flags) and len({frozenset(row) for row in PRESETS.values()}) == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_flags_that_are_not_typed(name):
    settings = parse(DIFFUSION, f"{BASE} --preset {name} --sampling_timesteps 7".split())
    assert settings.config.sampling.sampling_timesteps == 7
    for flag, value in PRESETS[name].items():
        assert flag == "sampling_timesteps" or settings.get(flag) == value


def test_defaults_hold_without_a_preset():
    settings = parse(DIFFUSION, BASE.split())
    plain = SamplingOptions()
    assert (settings.config.sampling.sampler, settings.config.sampling.sampling_timesteps) == (
        plain.sampler,
        plain.sampling_timesteps,
    )


def test_a_preset_replaces_the_saved_sampling_flags_of_a_run(programs, chain, tmp_path):
    saved = parse(DIFFUSION, f"--eval --resume_dir {chain / 'diff'}".split())
    typed = parse(DIFFUSION, f"--eval --resume_dir {chain / 'diff'} --preset fast".split())
    assert saved.config.sampling.sampling_timesteps == 2, "as in training"
    sampling = typed.config.sampling
    assert (sampling.sampling_timesteps, sampling.sampler) == (25, PRESETS["fast"]["sampler"])
    flags = f"--eval --preset fast --sampling_timesteps 3 --output_dir {tmp_path}"
    assert programs.again("diffusion", chain / "diff", flags) == 0


def test_a_preset_replaces_the_grid_shift_and_the_respacing_of_training(programs, chain, tmp_path):
    """With the saved values, steps or grid would differ from the measured preset. Typed flags still have an effect."""
    words = f"{programs.data} --latent_model_path {chain / 'ae'} --num_train_steps 1 --train_batch_size 8 --device cpu"
    words += f" --max_seq_len 40 --tx_dim 64 --tx_depth 2 --num_samples 2 --decoding greedy --scorer {programs.scorer}"
    respaced = "--beta_schedule cosine --timesteps 100 --timestep_respacing 3"
    shifted = "--time_grid shifted --grid_shift 9 --sampling_timesteps 2"
    for name, flags in (("respaced", respaced), ("shifted", shifted)):
        argv = f"{words} {flags} --no_wandb --output_dir {tmp_path / name}".split()
        assert train_diffusion.train(parse(DIFFUSION, argv)) == 0
    for run in ("respaced", "shifted"):
        again = f"--eval --resume_dir {tmp_path / run}".split()
        fast = parse(DIFFUSION, [*again, "--preset", "fast"])
        sampling = fast.config.sampling
        assert (sampling.sampling_timesteps, sampling.time_grid) == (25, "shifted"), run
        assert fast.get("grid_shift") is None and fast.get("timestep_respacing") is None, run
        assert parse(DIFFUSION, [*again, "--preset", "fast", "--grid_shift", "4"]).get("grid_shift") == 4
    assert parse(DIFFUSION, again).get("grid_shift") == 9
    assert parse(DIFFUSION, [*again, "--time_grid", "karras"]).get("grid_shift") is None, "the shift of another grid"
    assert programs.again("diffusion", tmp_path / "shifted", f"--eval --time_grid uniform --output_dir {tmp_path}") == 0


def test_a_preset_does_not_change_the_decoding_of_embeddings():
    settings = parse(DIFFUSION, f"{BASE} --latent_space embeddings --preset best".split())
    assert settings.config.evaluation.decoding == "greedy" and settings.config.sampling.sampling_timesteps == 250


def test_a_preset_sets_the_decoding_of_the_pipeline_and_of_sample(chain, tmp_path, monkeypatch, capsys):
    """The argument of a call takes precedence over the preset."""
    asked = []
    decode = TextGenerator.decode
    monkeypatch.setattr(TextGenerator, "decode", lambda *args: asked.append(args[2]) or decode(*args))
    few = {"sampling_timesteps": 2, "device": "cpu"}
    pipeline = TextDiffusionPipeline.from_pretrained(chain / "diff", preset="fast", **few)
    pipeline(2)
    pipeline.variations(["Ben ran home."], strength=0.9)
    pipeline(2, decoding="nucleus")
    TextDiffusionPipeline.from_pretrained(chain / "diff", **few)(2)
    assert asked == ["greedy", "greedy", "nucleus", "beam"]
    words = f"--run {chain / 'diff'} --num_samples 2 --output_dir {tmp_path} --device cpu".split()
    words += ["--sampling_timesteps", "2"]
    assert sample.main([*words, "--preset", "best"]) == 0
    assert sample.main([*words, "--preset", "best", "--decoding", "nucleus"]) == 0
    assert sample.main(words) == 0
    assert asked[4:] == ["beam", "nucleus", "greedy"] and len(capsys.readouterr().out.splitlines()) == 6

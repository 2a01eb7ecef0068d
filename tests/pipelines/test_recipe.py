"""The recipe: the flags of its stages, what it refuses, and tiny trainings from texts to a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.recipe_data import CorpusFacts
from pipelines.recipe_options import CHOSEN, CHOSEN_FROM_SCRATCH
from pipelines.recipe_plan import Machine, choose, choose_steps, shares
from pipelines.recipe_stages import Setting, evaluation_flags, make_stage
from pipelines.stages import fill
from utils.cli.parse import parse
from utils.run_folder import write_json

CAPTIONS = CorpusFacts(texts=60_000, held_out=1_000, words=12, tokens=38, sentences=1, most_sentences=1)
STORIES = CorpusFacts(texts=18_600, held_out=200, words=45, tokens=86, sentences=5, most_sentences=5)
PAIRS = CorpusFacts(texts=9_000, held_out=200, words=15, tokens=40, sentences=1, most_sentences=1, has_sources=True)
CLASSES = CorpusFacts(texts=9_000, held_out=200, words=15, tokens=40, sentences=1, most_sentences=1, classes=3)


def setting(facts, given, machine=None) -> Setting:
    machine = machine or Machine("a b/lm", "encoder", 400)
    choices = choose(facts, machine, 3600, given)
    return Setting(
        "--train_file 'a b.txt'", choices, machine.language_model, machine.encoder_model, facts.has_sources,
        {"num_samples": 9, **given},
    )  # fmt: skip


def trained_decoder(root: Path, way: str) -> None:
    """args.json of the runs that the last stage reads."""
    latents = {"encoder_model": "encoder"} if way == "pretrained" else {"latent_model_path": "autoencoder"}
    space = {"latent_space": "sentence" if way == "pretrained" else "compressed"}
    for name, args in (("decoder", {"decoder_model": "a b/lm", **latents, **space}), ("autoencoder", {"program": "train_latent_model.py"})):
        (root / name).mkdir()
        write_json(root / name / "args.json", args)


@pytest.mark.parametrize("facts", [CAPTIONS, STORIES, PAIRS, CLASSES])
@pytest.mark.parametrize("way", ["pretrained", "perceiver", "scratch"])
@pytest.mark.parametrize("adapt", [True, False])
def test_the_flags_of_every_stage_are_those_of_its_program(facts, way, adapt, tmp_path):
    made = setting(facts, {"way": way, "adapt_decoder": adapt, "denoiser_flags": "--clip_grad_norm 0.5"})
    steps = choose_steps(600, 2, 5, 32)
    stages = list(shares(made.choices))
    assert ("adapted" in stages) == adapt
    trained_decoder(tmp_path, way)
    for name in stages:
        stage = make_stage(name, made, steps)
        found = parse(stage.program, stage.argv(tmp_path))
        assert found.config.loop.num_train_steps == steps.steps and found.config.data.train_file == "a b.txt"
        assert found.config.data.max_train_texts == made.value("max_train_texts")
        if name == "diffusion":
            assert found.config.optimizer.clip_grad_norm == 0.5  # of the user, last
            assert found.config.denoiser.class_conditional == (facts is CLASSES)
            assert not found.config.context.ignore_sources
        if name == "decoder" and way == "pretrained":
            assert found.config.decoder.decoder_model == "a b/lm"
            assert found.config.sentence.pooling == ("sentences" if facts is STORIES else "mean")


def test_the_evaluation_reads_the_adapted_decoder(tmp_path):
    made = setting(CAPTIONS, {"adapt_decoder": True})
    judges = {"scorer": "a b", "mauve_encoder": None}
    words = fill(evaluation_flags(made, shares(made.choices), judges), root=tmp_path)
    assert words[words.index("--latent_model_path") + 1] == str(tmp_path / "adapted")
    assert words[words.index("--scorer") + 1] == "a b" and "--mauve_encoder" not in words


def test_a_flag_replaces_each_choice():
    typed = {"pooling": "segments", "condition": "none", "denoiser_variant": "latent", "way": "pretrained"}
    for name, (kind, _) in {**CHOSEN, **CHOSEN_FROM_SCRATCH}.items():
        value = kind(typed.get(name, 2))
        machine = Machine(None, None) if name in CHOSEN_FROM_SCRATCH else Machine("lm", "encoder", 400)
        given = {name: value} | ({"pooling": "segments"} if name == "num_sentence_latents" else {})
        assert choose(CAPTIONS, machine, 3600, given)[name].value == value, name

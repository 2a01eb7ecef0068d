"""The recipe: the flags of its stages, what it refuses, and tiny trainings from texts to a page."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset_utils.corpus import Corpus
from dataset_utils.registry import NOT_IN_CATALOG
from dataset_utils.splits import Split
from pipelines import probes
from pipelines.adapt_decoder import network_flags
from pipelines.cli.programs import AUTOENCODER, DIFFUSION, TEXT_DECODER
from pipelines.recipe import __main__ as recipe
from pipelines.recipe import lengths, plan, sample_count
from pipelines.recipe.arguments import CHOSEN, CHOSEN_FROM_SCRATCH, check_arguments, parser, unused
from pipelines.recipe.checks import rules_without_folders
from pipelines.recipe.corpus_facts import CorpusFacts
from pipelines.recipe.folder import RECORD, SECONDS, RecipeFolder
from pipelines.recipe.left_out import without_flags
from pipelines.recipe.plan import Machine, Steps, choose, choose_steps, shares
from pipelines.recipe.reuse import OtherRecipe
from pipelines.recipe.sample_count import affordable, seconds_of_a_text, texts_of_a_class
from pipelines.recipe.stages import (
    Setting,
    check_own_flags,
    evaluation_flags,
    log_interval,
    make_stage,
    notes,
    shown_command,
)
from pipelines.stages import fill
from pipelines.text_diffusion import TextDiffusionPipeline
from tests.tiny_models import tiny_encoder
from utils import checkpoints
from utils.cli.parse import check_flags, parse
from utils.errors import UserError
from utils.run_folder import write_json
from utils.trackers import wants_wandb

CAPTIONS = CorpusFacts(texts=60_000, held_out=1_000, words=12, tokens=38, sentences=1, most_sentences=1)
STORIES = CorpusFacts(texts=18_600, held_out=200, words=45, tokens=86, sentences=5, most_sentences=5)
PAIRS = CorpusFacts(texts=9_000, held_out=200, words=15, tokens=40, sentences=1, most_sentences=1, has_sources=True)
CLASSES = CorpusFacts(texts=9_000, held_out=200, words=15, tokens=40, sentences=1, most_sentences=1, classes=3)


def setting(facts, given, machine=None) -> Setting:
    machine = machine or Machine("a b/lm", "encoder", 400)
    choices = choose(facts, machine, 3600, given)
    return Setting(
        "--train_file 'a b.txt'", choices, machine.language_model, machine.encoder_model, facts.has_sources,
        given,
    )  # fmt: skip


def trained_decoder(root: Path, way: str) -> None:
    """args.json of the runs that the last stage reads."""
    encoder = "a b/lm" if way == "states" else "encoder"
    latents = {"encoder_model": encoder} if way in plan.POOLED else {"latent_model_path": "autoencoder"}
    space = {"latent_space": "sentence" if way in plan.POOLED else "compressed"}
    for name, args in (
        ("decoder", {"decoder_model": "a b/lm", **latents, **space}),
        ("autoencoder", {"program": "train_latent_model.py"}),
        ("diffusion", {"program": "train_text_diffusion.py"}),
    ):
        (root / name).mkdir()
        write_json(root / name / "args.json", args)


@pytest.mark.parametrize("facts", [CAPTIONS, STORIES, PAIRS, CLASSES])
@pytest.mark.parametrize("way", plan.WAYS)
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
        if name == "decoder" and way in ("pretrained", "states"):
            assert found.config.decoder.decoder_model == "a b/lm"
            sentence, expected = found.config.sentence, ("a b/lm", 2, "half_whiten")
            expected = expected if way == "states" else ("encoder", None, "standard")
            assert (sentence.encoder_model, sentence.encoder_layer, sentence.latent_scaling) == expected
            assert found.config.sentence.pooling == ("sentences" if facts is STORIES else "mean")


def test_the_evaluation_is_of_the_run_in_which_the_denoiser_trained_last(tmp_path):
    judges = {"scorer": "a b", "mauve_encoder": None}
    for joint, run in ((None, "diffusion"), (True, "joint")):
        made = setting(CAPTIONS, {"way": "autoencoder", "joint": joint})
        words = fill(evaluation_flags(made, 9, judges), root=tmp_path)
        assert words[words.index("--resume_dir") + 1] == str(tmp_path / run)
        assert words[words.index("--scorer") + 1] == "a b" and "--mauve_encoder" not in words


@pytest.mark.parametrize(
    ("flags", "noise"),
    [
        ("", 0.5),
        ("--max_latent_noise 0.6", 0.3),
        ("--max_latent_noise 0", None),
        ("--no_noise_level_conditioning", None),
        ("--lm_mode freeze --max_latent_noise 0.8", 0.4),
    ],
)
def test_samples_get_half_of_the_noise_that_a_decoder_was_trained_with_and_reads(flags, noise, tmp_path):
    made = setting(CAPTIONS, {"way": "autoencoder", "autoencoder_flags": flags})
    stages = {name: make_stage(name, made, choose_steps(600, 2, 5, 32)) for name in ("autoencoder", "diffusion")}
    autoencoder = check_flags(
        AUTOENCODER, stages["autoencoder"].argv(tmp_path), rules_without_folders(AUTOENCODER)
    ).config
    assert autoencoder.latent_augmentation.noise_level_conditioning == (noise is not None)
    diffusion = check_flags(DIFFUSION, stages["diffusion"].argv(tmp_path), rules_without_folders(DIFFUSION)).config
    assert diffusion.decoding.decoder_noise == noise


def test_a_transformer_is_added_to_the_best_linear_denoiser_and_an_mlp_is_not(tmp_path):
    for facts, given, added in (
        (CAPTIONS, {}, False),
        (STORIES, {}, True),
        (CAPTIONS, {"way": "scratch"}, False),
        (STORIES, {"way": "scratch"}, True),
        (CAPTIONS, {"way": "autoencoder"}, False),
        (CAPTIONS, {"way": "autoencoder", "denoiser_variant": "latent"}, True),
        (CAPTIONS, {"way": "autoencoder", "denoiser_variant": "latent", "joint": True}, False),  # latents change
    ):
        stage = make_stage("diffusion", setting(facts, given), choose_steps(600, 2, 5, 32))
        assert (
            check_flags(
                DIFFUSION, stage.argv(tmp_path), rules_without_folders(DIFFUSION)
            ).config.denoiser.linear_denoiser
            == added
        )


def test_an_mlp_on_one_vector_learns_at_most_at_middle_times(tmp_path):
    typed = {"denoiser_flags": "--schedule_sampler adaptive"}
    for facts, given, sampler in (
        (CAPTIONS, {}, "logit_normal"),
        (CAPTIONS, {"way": "scratch"}, "logit_normal"),
        (CAPTIONS, typed, "adaptive"),
        (CAPTIONS, {"way": "autoencoder"}, "stratified"),
        (STORIES, {}, "stratified"),
        (STORIES, {"denoiser_variant": "mlp"}, "stratified"),
    ):
        stage = make_stage("diffusion", setting(facts, given), choose_steps(600, 2, 5, 32))
        process = check_flags(DIFFUSION, stage.argv(tmp_path), rules_without_folders(DIFFUSION)).config.process
        middle = (process.time_logit_mean, process.time_logit_std) != (0.0, 1.0)
        assert (process.schedule_sampler, middle) == (sampler, sampler == "logit_normal")


@pytest.mark.parametrize("joint", [None, True])
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--noise_level_conditioning --max_latent_noise 0.6",
        "--kl_weight 0.1",
        "--num_layers 3 --dim_ae 24",
        "--autoencoder per_token",
        "--feature_matching_weight 1",
        "--lm_mode freeze --alignment_weight 0.5",
    ],
)
def test_an_adapted_decoder_has_the_network_of_the_autoencoder(flags, joint, tmp_path):
    made = setting(CAPTIONS, {"way": "autoencoder", "autoencoder_flags": flags, "joint": joint, "adapt_decoder": True})
    steps, found = choose_steps(600, 2, 5, 32), {}
    for name in shares(made.choices):
        stage = make_stage(name, made, steps)
        found[name] = check_flags(stage.program, stage.argv(tmp_path), rules_without_folders(stage.program))
    first, second = found["autoencoder"], found["adapted"]
    assert network_flags(first.values) == network_flags(second.values)
    assert ("num_encoder_latents" in first.explicit) == ("per_token" not in flags)
    assert second.config.autoencoder.lm_mode == "decoder" and second.config.autoencoder.max_latent_noise == 0
    assert second.config.loop.num_train_steps == steps.steps and second.config.latent_losses.alignment_weight == 0
    assert second.config.run.resume_dir == str(tmp_path / ("joint/autoencoder" if joint else "autoencoder"))
    assert second.config.augmentation.denoiser_run == str(tmp_path / ("joint" if joint else "diffusion"))
    scaled = found["diffusion"].config.latents.normalize_latent
    assert scaled == ("kl_weight" in flags) and first.config.perceiver.l2_normalize_latents != scaled
    assert len(notes(made)) == ("kl_weight" in flags or "per_token" in flags)


BOTH_HERE = {"way": "autoencoder", "joint": True}


@pytest.mark.parametrize(
    ("stage", "given", "instead"),
    [
        ("decoder", {"decoder_flags": "--config num_train_steps=5"}, "decoder_steps"),
        ("decoder", {"decoder_flags": "--train_batch_size 8"}, "decoder_batch_size"),
        ("joint", BOTH_HERE | {"joint_flags": "--train_batch_size 8"}, "denoiser_batch_size"),
        ("lm", BOTH_HERE | {"language_model_flags": "--num_train_steps=5"}, "language_model_steps"),
        ("adapted", {"adapt_decoder": True, "adapted_flags": "--num_train_steps 5 --lora_rank 4"}, "adapted_steps"),
        # choices that others follow from
        ("decoder", {"decoder_flags": "--pooling segments"}, "pooling"),
        ("diffusion", {"denoiser_flags": "--denoiser_variant latent --clip_grad_norm 1"}, "denoiser_variant"),
        ("diffusion", {"denoiser_flags": "--learning_rate 1e-4"}, "denoiser_learning_rate"),
        ("diffusion", {"denoiser_flags": "--sampler=ddim"}, "sampler"),
        ("autoencoder", BOTH_HERE | {"autoencoder_flags": "--dim_ae 8"}, "dim_ae"),
    ],
)
def test_choices_of_the_recipe_are_its_own_flags(stage, given, instead):
    with pytest.raises(UserError, match=f"which the recipe chooses: type --{instead} instead"):
        check_own_flags(stage, setting(CAPTIONS, given))


def test_what_is_no_choice_is_a_flag_of_its_stage():
    check_own_flags("lm", setting(CAPTIONS, BOTH_HERE | {"language_model_flags": "--train_batch_size 16"}))
    check_own_flags("joint", setting(CAPTIONS, BOTH_HERE | {"joint_flags": "--learning_rate 1e-5"}))
    given = {"decoder_flags": "--max_latent_noise 0 --learning_rate 1e-4", "denoiser_flags": "--objective pred_x0"}
    for stage in ("decoder", "diffusion"):
        check_own_flags(stage, setting(CAPTIONS, given))


@pytest.mark.parametrize("way", ["states", "pretrained"])
@pytest.mark.parametrize("pooling", ["learned", "segments"])
def test_learned_latents_are_scaled_once_they_are_learned(way, pooling, tmp_path):
    made, learned = setting(CAPTIONS, {"way": way, "pooling": pooling}), pooling == "learned"
    stages = {name: make_stage(name, made, choose_steps(600, 2, 5, 32)) for name in ("decoder", "diffusion")}
    assert ("half_whiten" in stages["decoder"].flags) == (way == "states" and not learned)
    assert ("--normalize_latent" in stages["diffusion"].argv(tmp_path)) == learned


def test_a_command_is_shown_as_it_will_be_run(tmp_path):
    made = setting(CAPTIONS, {"denoiser_flags": "--objective pred_x0"})
    shown = shown_command("diffusion", made, tmp_path, None)
    assert shown.startswith("train_text_diffusion.py --train_file 'a b.txt' --max_train_texts 60000")
    assert "--num_train_steps N --train_batch_size 512 --lr_warmup_steps N" in shown and "--objective pred_x0" in shown
    steps = choose_steps(600, 2, 5, 32)
    known = shown_command("diffusion", made, tmp_path, steps)
    assert shlex.split(known)[1:] == make_stage("diffusion", made, steps).argv(tmp_path)


def test_the_evaluation_samples_what_its_time_allows():
    assert affordable(0.2, 90) == 450 and affordable(0.2, 1e6) == 1000 and affordable(5, 10) == 50
    assert affordable(0.1, 36, classes=2, of_a_class=500) == 120, "as many of each class, too"
    assert affordable(0.1, 36, classes=2, of_a_class=50) == 260, "but no more than the smallest class has"
    labels = {"train": [0] * 5 + [1] * 3, "valid": [1, 0, 1]}
    splits = {name: Split(["a text"] * len(found), labels=found) for name, found in labels.items()}
    assert texts_of_a_class(Corpus("own", splits, NOT_IN_CATALOG, class_names=("a", "b"))) == 1


def test_a_text_is_timed_with_all_that_the_evaluation_samples_for_it(programs, chain, tmp_path, monkeypatch):
    """Every candidate for a source; and a class, without which a network may not sample."""
    space, seconds = f"--latent_model_path {chain / 'ae'}", itertools.count()
    files = " ".join(f"--{split}_file {programs.corpus}/pairs_{split}.jsonl" for split in ("train", "valid", "test"))
    assert programs.diffusion(space, tmp_path / "pairs", f"{files} --num_samples 2 --seq2seq_candidates 3") == 0
    assert programs.diffusion(space, tmp_path / "classes", "--class_conditional --class_unconditional_prob 0") == 0
    monkeypatch.setattr(sample_count, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    sources = ["Anna ran home."] * 40
    assert seconds_of_a_text(tmp_path / "pairs", "greedy", sources, None) == pytest.approx(1 / 16)
    assert seconds_of_a_text(tmp_path / "classes", "greedy", None, None) == pytest.approx(1 / 48)
    assert seconds_of_a_text(tmp_path / "classes", "greedy", None, "local_lm") == pytest.approx(1 / 48), "trained later"


def test_a_log_line_comes_after_ten_seconds_or_fifty_steps():
    def interval(steps: int, rate: float) -> int:
        return log_interval(Steps(steps, 32, 0, 0.9, 600.0, rate))

    assert (interval(5000, 0.5), interval(5000, 30.0), interval(12, 30.0)) == (5, 50, 3)
    assert (interval(5000, 0.0), interval(12, 0.0)) == (50, 3), "typed steps, whose rate no probe has told"


def begun_folder(root: Path, minutes: str, **given: str) -> RecipeFolder:
    """The folder of a recipe that has chosen and trained nothing."""
    made = RecipeFolder(parser().parse_args(f"--train_file x --minutes {minutes} --output_dir {root}".split()))
    choices = choose(CAPTIONS, Machine("lm", "encoder", 400), 60 * float(minutes), given)
    made.state = {
        "given": given,
        "choices": {name: asdict(choice) for name, choice in choices.items()},
        "models": {"language_model": "lm", "encoder_model": "encoder"},
        "corpus_flags": "--train_file x",
        "corpus": {"has_sources": False},
        "stages": {},
    }
    return made


def test_a_probe_opens_no_run_of_a_tracker(tmp_path, monkeypatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(lengths, "probe", lambda command, *more: asked.append(command) or probes.Rate(0.1, 5.0))
    lengths.fix_length(begun_folder(tmp_path, "60", decoder_flags="--wandb_name mine --tensorboard"), "decoder")
    settings = check_flags(TEXT_DECODER, asked[0][4:])
    assert settings.config.tracking.wandb_name == "mine" and not settings.config.tracking.tensorboard
    assert not wants_wandb(settings)


def log_seconds(folder: RecipeFolder, *seconds: float, rest: str = "") -> None:
    """Write the log of the decoder: a line a step, of its seconds."""
    lines = "".join(json.dumps({"step": i, "seconds": at}) + "\n" for i, at in enumerate(seconds, 1))
    (folder.root / "decoder").mkdir(exist_ok=True)
    (folder.root / "decoder/metrics.jsonl").write_text(lines + rest, encoding="utf-8")


def test_the_seconds_of_killed_sessions_are_booked(tmp_path, monkeypatch):
    """Lines after the last checkpoint are removed, seconds begin anew, and a kill leaves half a line."""
    step = {"step": 0}
    monkeypatch.setattr(checkpoints, "newest", lambda folder: step)
    made = begun_folder(tmp_path, "10")
    made.state["stages"]["decoder"] = {"seconds": 450.0}
    made.begin("decoder")
    assert made.spent("decoder") == 0 and made.left() == 600
    log_seconds(made, 10, 20, 30, rest='{"step": 4, "sec')
    step["step"] = 2
    assert made.spent("decoder") == 30 and made.left() == 570
    made.begin("decoder")
    assert made.clock.seconds == {"decoder": 30} == json.loads((tmp_path / SECONDS).read_text())
    log_seconds(made, 10, 20, 5, 12)
    assert made.spent("decoder") == 42, "the removed 10 s were spent, too"
    made.begin("decoder")
    made.clock.add("decoder", 15)  # a session that ends books itself
    log_seconds(made, 10, 20, 13)
    assert made.spent("decoder") == 57
    assert record(tmp_path)["stages"]["decoder"]["began"] == {"clock": 42, "logged": 20}
    (tmp_path / "decoder/metrics.jsonl").unlink()
    assert made.spent("decoder") == 57


def test_the_table_of_a_recipe_that_goes_on_shows_what_its_stages_took(tmp_path):
    made = begun_folder(tmp_path, "10")
    planned = made.times()
    assert list(planned) == ["decoder", "diffusion"] and sum(planned.values()) == pytest.approx(600)
    made.clock.seconds = {"choices": 20.0, "decoder": 180.0}
    made.state["stages"]["decoder"] = {"seconds": 450.0}
    assert made.times() == {"decoder": 450.0, "diffusion": 130.0}
    made.state["stages"]["decoder"]["done"] = {"step": 9}
    assert made.times() == {"decoder": 180.0, "diffusion": 400.0}


def test_the_minutes_that_a_note_asks_for_contain_the_probe(tmp_path, monkeypatch):
    """It also encodes the texts: no stage gets its seconds."""
    asked: list[float] = []
    monkeypatch.setattr(lengths, "probe", lambda *given: time.sleep(0.5) or probes.Rate(0.1, 0.5))
    monkeypatch.setattr(plan, "minutes_needed", lambda *given, **more: asked.append(given[4]) or 9)
    made = begun_folder(tmp_path, "0.05")
    assert lengths.fix_length(made, "decoder")["steps"] < 300
    assert len(asked) == 1 and 0.5 <= asked[0] < 3


def test_a_flag_replaces_each_choice():
    typed = {
        "decoding": "nucleus",
        "pooling": "segments",
        "condition": "none",
        "denoiser_variant": "latent",
        "way": "pretrained",
    }
    for name, (kind, _) in {**CHOSEN, **CHOSEN_FROM_SCRATCH}.items():
        value = kind(typed.get(name, 0.5 if kind is float else 2))
        machine = Machine(None, None) if name in CHOSEN_FROM_SCRATCH else Machine("lm", "encoder", 400)
        more = {"num_sentence_latents": {"pooling": "segments"}}
        more |= dict.fromkeys(("num_encoder_latents", "dim_ae"), {"way": "autoencoder"})
        given = {name: value, **more.get(name, {})}
        assert choose(CAPTIONS, machine, 3600, given)[name].value == value, name


def test_a_typed_flag_that_changes_nothing_is_named():
    stages = ("causal_lm", "decoder", "diffusion")
    typed = {"dim_ae": 8, "d_model": 64, "joint_steps": 9, "decoder_steps": 9, "tx_dim": 64}
    models = {"language_model": None, "encoder_model": None}
    lines = unused(typed | {"encoder_model": "a"}, ("d_model", "tx_dim"), stages, models)
    assert [line.split()[0] for line in lines] == ["--dim_ae", "--joint_steps", "--encoder_model"]
    assert not unused({"language_model_steps": 5, "train_file": "a", "language_model": "none"}, (), stages, models)
    assert not unused({"language_model": "b"}, (), stages, {"language_model": "b", "encoder_model": None})


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        ("--train_file a/captions.jsonl.gz", "runs/recipe_captions"),
        ("--train_file a/roc/train.txt", "runs/recipe_roc"),
        ("--dataset_name sst --data_dir x", "runs/recipe_sst"),
        ("--data_dir x/own", "runs/recipe_own"),
        ("--train_file a/b.txt --output_dir c", "c"),
    ],
)
def test_the_folder_of_a_corpus_is_named_after_it(typed, folder):
    args = parser().parse_args(["--minutes", "60", *typed.split()])
    check_arguments(args)
    assert args.output_dir == Path(folder)


# ------------------------------------------------------------------------------------------------------------ programs

WORDS = ("red", "blue", "small", "old")
THINGS = ("dog", "cat", "kite", "boat", "house")
DOES = ("runs", "waits", "turns", "shines")


def sentence(i: int) -> str:
    return f"The {WORDS[i % 4]} {THINGS[i % 5]} {DOES[i // 5 % 4]} by the {WORDS[i // 20 % 4]} {THINGS[i // 3 % 5]}."


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Tiny corpora of each kind, a causal language model, and an encoder of sentences."""
    from evaluation.local_lm import train_local

    root = tmp_path_factory.mktemp("recipe")
    texts = [sentence(i) for i in range(300)]
    rows = {
        "captions": [{"text": text} for text in texts],
        "stories": [{"text": " ".join(sentence(5 * i + j) for j in range(3))} for i in range(300)],
        "classes": [{"text": text, "label": text.split()[1]} for text in texts],
        "pairs": [{"source": f"{i} {' '.join(text.split()[1:4])}", "target": text} for i, text in enumerate(texts)],
    }
    for name, found in rows.items():
        for split, some in (("train", found[:240]), ("valid", found[240:270]), ("test", found[270:])):
            lines = "".join(json.dumps(row) + "\n" for row in some)
            (root / f"{name}_{split}.jsonl").write_text(lines, encoding="utf-8")
    train_local(texts, root / "lm", steps=5, width=32, layers=2, heads=2, vocab_size=400, max_length=80)
    tiny_encoder(root / "encoder", texts)
    return root


STEPS = "--decoder_steps 12 --denoiser_steps 12 --language_model_steps 8 --autoencoder_steps 8 --adapted_steps 6"
STEPS += " --joint_steps 6"


def words(files: Path, out: Path, corpus: str, more: str = "", steps: str = STEPS) -> list[str]:
    """A command line of the recipe, with steps instead of minutes, so that it trains no longer than it must."""
    found = " ".join(f"--{split}_file {files}/{corpus}_{split}.jsonl" for split in ("train", "valid", "test"))
    return (
        f"{found} --minutes 0.5 --language_model {files}/lm --encoder_model {files}/encoder --output_dir {out} "
        f"--num_samples 12 --tx_dim 64 --tx_depth 1 --sampling_timesteps 3 --d_model 64 --layers 1 {steps} {more}"
    ).split()


def record(out: Path) -> dict:
    return json.loads((out / "recipe.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--minutes 0", "no time"),
        ("--minutes nan", "no time"),
        ("--tx_dim -1", "too small"),
        ("--denoiser_share 1", "less than 1"),
        ("--condition other", "unknown"),
        ("--condition class", "needs labels"),
        ("--condition source", "have no sources"),
        ("--way perceiver --language_model none", "needs a language model"),
        ("--way states --language_model none", "needs a language model"),
        ("--way pretrained --encoder_model none", "needs an encoder"),
        ("--decoder_flags '", "--decoder_flags"),
        ("--language_model /nowhere/lm --encoder_model /nowhere/encoder", "/nowhere/encoder"),
        ("--train_file /nowhere/texts.txt", "/nowhere/texts.txt"),
        ("--scorer /nowhere/judge", "/nowhere/judge"),
        ("--mauve_encoder /nowhere/judge", "/nowhere/judge"),
        ("--joint", "latents of --way pretrained stay as they are"),
        ("--way autoencoder --num_encoder_latents 8 --autoencoder_flags=--autoencoder=per_token", "leave it out"),
        ("--way autoencoder --autoencoder_flags=--kl_weigth=1", "--autoencoder_flags: unknown flag --kl_weigth"),
        (
            "--way autoencoder --adapt_decoder --adapted_flags=--num_layers=few",
            "adapted stage would end at once: --num_layers",
        ),
        ("--joint_flags=--learning_rate=1e-5", "(stages: decoder, diffusion): leave it out, or add --joint"),
        ("--autoencoder_flags=--num_layers=2", "is for a stage that is not trained here"),
        ("--sampler walk", "diffusion stage would end at once: --sampler"),
        ("--top_p 7", "--top_p"),
        ("--denoiser_flags=--tx_dimm=9", "unknown flag --tx_dimm"),
        ("--decoder_flags=--learning_rate=often", "decoder stage would end at once: --learning_rate"),
        ("--way scratch --decoder_flags=--nonsense=1", "the decoder stage would end at once: unknown flag"),
        (
            "--decoder_flags=--num_train_steps=5",
            "has --num_train_steps, which the recipe chooses: type --decoder_steps",
        ),
        ("--denoiser_flags=--train_batch_size=8", "type --denoiser_batch_size instead"),
    ],
)
def test_a_mistake_is_one_line(files, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as ended:
        recipe.main(words(files, tmp_path / "out", "captions", more))
    err = capsys.readouterr().err.strip()
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]  # of measuring the encoder
    assert ended.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "out/decoder").exists()
    assert not (tmp_path / "out/seconds.json").exists(), "the seconds of a refused recipe are not those of the next"


def test_only_one_recipe_runs_in_a_folder(files, tmp_path, capsys):
    program = "import sys, time; from pathlib import Path; from utils.locks import try_lock; "
    program += "print(try_lock(Path(sys.argv[1])), flush=True); time.sleep(60)"
    root = Path(__file__).resolve().parents[2]
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(SystemExit) as ended:
            recipe.main(words(files, tmp_path, "captions"))
        err = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and "another recipe is running in" in err and "\n" not in err
        assert not (tmp_path / "recipe.json").exists() and not (tmp_path / "seconds.json").exists()
    finally:
        other.kill()
        other.wait()


def test_a_missing_package_is_said_before_anything_is_measured(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit):
        recipe.main(words(files, tmp_path / "out", "captions"))
    assert "pip install peft, or train the whole language model" in capsys.readouterr().err
    whole = [*words(files, tmp_path / "ft", "captions", "--dry_run"), "--decoder_flags=--decoder_mode ft"]
    assert recipe.main(whole) == 0


def test_a_dry_run_prints_the_choices_and_writes_nothing(files, tmp_path, capsys):
    assert recipe.main(words(files, tmp_path / "out", "stories", "--dry_run")) == 0
    printed = capsys.readouterr().out
    assert "3 sentences" in printed and "sentences" in printed and "time of diffusion" in printed
    assert "flags of decoder: python -m pipelines.train_text_decoder --train_file" in printed
    assert "--num_train_steps N --train_batch_size 32" in printed and "flags of diffusion: train_text_diff" in printed
    assert not (tmp_path / "out").exists()


def test_equal_stages_are_taken_over_and_their_time_is_spent(files, tmp_path, capsys):
    first, second, short = tmp_path / "first", tmp_path / "second", "--no_evaluation --sampler ddim"
    assert recipe.main(words(files, first, "captions", short)) == 0
    state = record(first)
    capsys.readouterr()
    changed = f"{short} --reuse {first} --denoiser_flags=--schedule_sampler=logit_normal"
    assert recipe.main(words(files, second, "captions", changed)) == 0
    printed = capsys.readouterr().out
    assert f"decoder: taken over from {first}" in printed
    assert "diffusion: is trained here, since its flags differ (--schedule_sampler=logit_normal)" in printed
    for name in ("args.json", "metrics.jsonl"):
        assert (second / "decoder" / name).read_bytes() == (first / "decoder" / name).read_bytes()
    spent = [json.loads((out / "seconds.json").read_text()) for out in (first, second)]
    assert spent[0]["decoder"] == spent[1]["decoder"] and spent[1]["diffusion"] > 0
    args = json.loads((second / "diffusion/args.json").read_text())
    assert args["schedule_sampler"] == "logit_normal"
    assert args["latent_model_path"] == str(second / "decoder"), "it does not need the other folder"
    taken = record(second)["stages"]
    assert taken["decoder"] == {**state["stages"]["decoder"], "reused": str(first)}
    assert "reused" not in taken["diffusion"]
    assert record(second)["encoder_texts_per_second"] == state["encoder_texts_per_second"], "as many texts"
    # the same again trains nothing
    assert recipe.main(words(files, second, "captions", changed)) == 0
    assert "taken over" not in capsys.readouterr().out

    other, setting = OtherRecipe(first), OtherRecipe(second).setting
    assert other.difference("decoder", setting, 0.5) is None
    assert other.difference("decoder", setting, 0.6) == "it has another part of the time"
    assert other.difference("joint", setting, 0.5) == "it is not finished there"
    flags = OtherRecipe(first).setting
    flags.given["decoder_flags"] = "--lora_rank=8"
    assert other.difference("decoder", flags, 0.5) == "its flags differ (--lora_rank=8)"


def test_a_folder_without_a_recipe_is_one_line(files, tmp_path, capsys):
    with pytest.raises(SystemExit):
        recipe.main(words(files, tmp_path / "out", "captions", f"--reuse {tmp_path}"))
    assert f"--reuse {tmp_path} is no folder of a recipe" in capsys.readouterr().err
    for name in (RECORD, SECONDS):  # JSON of something else
        (tmp_path / name).write_text('{"stages": {}}', encoding="utf-8")
    with pytest.raises(SystemExit):
        recipe.main(words(files, tmp_path / "out", "captions", f"--reuse {tmp_path}"))
    assert f"--reuse {tmp_path} is no folder of a recipe" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corpus", "more"),
    [
        ("captions", ""),
        ("stories", ""),
        ("classes", ""),
        ("pairs", ""),
        ("pairs", "--condition none --adapt_decoder"),
        ("captions", "--way perceiver"),
        ("captions", "--encoder_model none"),
        ("stories", "--way states"),
        ("classes", "--language_model none --encoder_model none"),
        ("stories", "--way scratch --adapt_decoder"),
        ("pairs", "--way scratch"),
        ("pairs", "--way scratch --condition none"),
        ("classes", "--way autoencoder --joint --adapt_decoder"),
        ("pairs", "--way autoencoder --adapt_decoder"),
        ("captions", "--way autoencoder --adapt_decoder --decoding greedy"),
        ("captions", "--way autoencoder --autoencoder_flags=--autoencoder=per_token"),
        ("captions", "--way autoencoder --joint --autoencoder_flags=--kl_weight=0.1"),
        ("captions", "--way autoencoder --autoencoder_flags=--max_latent_noise=0"),
    ],
)
def test_every_kind_of_corpus_comes_to_its_page(files, tmp_path, capsys, corpus, more):
    out = tmp_path / "out"
    assert recipe.main(words(files, out, corpus, more)) == 0
    found = record(out)
    assert all(stage["done"]["step"] == stage["steps"] for stage in found["stages"].values())
    run = out / ("joint" if "--joint" in more else "diffusion")
    assert (out / "report.html").is_file() and (run / "evaluation/eval-valid.json").is_file()
    args = json.loads((run / "args.json").read_text())
    condition = "none" if "--condition none" in more else {"classes": "class", "pairs": "source"}.get(corpus, "none")
    assert found["choices"]["condition"]["value"] == condition
    assert args["class_conditional"] == (condition == "class") and args["seq2seq"] == (condition == "source")
    assert args["scorer"] is None and args["training_scores"] is False, "an evaluation by hand names its own, or none"
    printed = capsys.readouterr().out
    assert ("-n 10 --source TEXT" in printed) == (condition == "source")
    (again,) = [line for line in printed.splitlines() if "more texts: " in line]
    decoding = "greedy" if "--decoding greedy" in more else "nucleus"
    assert again.endswith(f"--decoding {decoding}") == ("--way autoencoder" in more), "that of the evaluation"
    assert found["seconds"]["total"] > 0
    if (out / "adapted").is_dir():  # its samples are decoded by the adapted decoder, without a flag
        assert texts_of(run, corpus) == texts_of(run, corpus, f"--latent_model_path={out / 'adapted'}")
    if "--way" not in more and "none" not in more.split("--condition")[0]:
        assert any("flatter" in note for note in found["evaluation"]["notes"])
    capsys.readouterr()
    assert recipe.main(words(files, out, corpus, more)) == 0  # nothing is done twice
    assert capsys.readouterr().out.count("already done") == len(found["stages"]) + 1
    with pytest.raises(SystemExit):
        recipe.main(words(files, out, corpus, more + " --tx_dim 128"))
    assert "was begun with --tx_dim 64" in capsys.readouterr().err


def texts_of(run: Path, corpus: str, *flags: str) -> list[str]:
    pipeline = TextDiffusionPipeline.from_pretrained(run, argv=flags)
    if pipeline.sources is not None:
        return list(pipeline(source=["1 red dog runs", "2 old cat waits"], seed=1, decoding="greedy"))
    return list(pipeline(4, seed=1, decoding="greedy"))


@pytest.mark.slow
def test_a_class_without_held_out_texts_does_not_stop_a_recipe_at_its_end(files, tmp_path, capfd):
    rows = (files / "classes_valid.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "valid.jsonl").write_text("".join(row for row in rows if '"label": "old"' not in row), encoding="utf-8")
    typed = words(files, tmp_path / "out", "classes", f"--valid_file {tmp_path / 'valid.jsonl'}")
    assert recipe.main(without_flags(typed, ["num_samples"])) == 0
    assert "the valid split has no text of class old" in capfd.readouterr().err
    found = json.loads((tmp_path / "out/diffusion/evaluation/eval-valid.json").read_text())
    assert "model/nucleus/label_accuracy" in found and "model/nucleus/mean_class_accuracy" not in found


@pytest.mark.slow
def test_a_budget_that_is_too_small_says_so_and_is_evaluated_on_fewer_texts(files, tmp_path, capsys):
    out = tmp_path / "out"
    typed = words(files, out, "captions", "--minutes 0.001", steps="--denoiser_steps 5")
    typed = without_flags(typed, ["num_samples"])
    assert recipe.main(typed) == 0
    printed = capsys.readouterr().out
    assert "note: 0.001 minutes allow 10 steps of the decoder; below about 300 steps texts do not follow" in printed
    assert re.search(r"give --minutes \d+ or more", printed)
    assert "so that 50 are sampled; MAUVE needs 1,000" in printed and record(out)["num_samples"] == 50
    assert recipe.main(typed) == 0 and "evaluation: already done" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_follow_from_minutes_and_a_killed_stage_goes_on(files, tmp_path):
    """A process that is ended in its first stage, twice: by SIGTERM, and by SIGKILL after a checkpoint."""
    out = tmp_path / "out"
    typed = [*words(files, out, "captions", steps=""), "--decoder_flags", "--save_every 5"]
    command = [sys.executable, "-m", "pipelines.recipe", *typed]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    for ending in (signal.SIGTERM, signal.SIGKILL):
        process = start()
        before = newest(out)
        for _ in range(3000):  # at most five minutes, on a machine that is busy
            if newest(out) > before or process.poll() is not None:
                break
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()[0]
        os.kill(process.pid, ending)
        process.communicate()
        assert record(out)["stages"]["decoder"]["steps"] > 0 and "done" not in record(out)["stages"]["decoder"]
    planned = record(out)["stages"]["decoder"]["steps"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "--resume_training" in done.stdout and "steps/s" in done.stdout
    stages = record(out)["stages"]
    assert stages["decoder"]["steps"] == planned and stages["diffusion"]["done"]["step"] >= 1
    assert (out / "report.html").is_file()


def newest(out: Path) -> int:
    from utils import checkpoints

    return (checkpoints.newest(out / "decoder") or {}).get("step", 0) if (out / "decoder").is_dir() else 0

"""Validation costs at most a tenth of training: by the arithmetic of each recipe, and as a run measures it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pipelines import evaluation_share
from pipelines.cli import programs
from pipelines.evaluation_share import EvaluationShare
from pipelines.evaluators.autoencoder import NUM_COMPARED
from pipelines.options import AutoencoderValidationOptions
from utils.options import LoopOptions, ValidationLossOptions

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("autoencoder", "diffusion", "embedding")
    for path in (ROOT / "scripts" / folder).glob("*.sh")
    if not re.search("eval|decode", path.name)
)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def evaluate(share: EvaluationShare, clock: Clock, seconds: float) -> None:
    with share.measure():
        clock.now += seconds


def test_evaluations_above_a_tenth_are_said_once_with_the_interval_that_is_enough():
    clock = Clock()
    share = EvaluationShare("eval_every", 1000, 50_000, clock)
    share.start()
    clock.now += 200
    evaluate(share, clock, 30)
    assert share.advice(1000) is None, "less than a minute of evaluations"
    clock.now += 200
    evaluate(share, clock, 45)
    line = "note: evaluations have taken 75 s and training 400 s: --eval_every 1900 (now 1000) makes them a tenth of it"
    assert share.advice(2000) == line
    clock.now += 10
    evaluate(share, clock, 500)
    assert share.advice(3000) is None, "said once"


def test_a_tenth_and_less_is_no_message_and_the_last_evaluation_needs_no_advice():
    clock = Clock()
    share = EvaluationShare("sample_every", 5000, 20_000, clock)
    share.start()
    clock.now += 900
    evaluate(share, clock, 90)
    assert share.advice(5000) is None
    clock.now += 100
    evaluate(share, clock, 400)
    assert share.advice(20_000) is None, "training has ended"
    assert share.advice(10_000).endswith("--sample_every 20000 (now 5000) makes them a tenth of it"), (
        "at most all steps"
    )


def test_an_evaluation_before_the_first_step_is_no_share_of_training():
    clock = Clock()
    share = EvaluationShare("eval_every", 10, 100, clock)
    evaluate(share, clock, 100)
    assert share.advice(0) is None


def test_validation_losses_count_and_the_flag_of_the_larger_part_is_named():
    clock, losses, said = Clock(), [], {}
    for name, per_log, evaluation in (("evaluations", 1, 60), ("losses", 40, 10), ("both", 20, 100)):
        share = EvaluationShare("eval_every", 1000, 50_000, clock, log_every=50)

        def hook(state, report, per_log=per_log):
            clock.now += per_log
            losses.append((state, report))

        share.start()
        for _ in range(4):
            clock.now += 100
            share.measured(hook)("state", "report")
        evaluate(share, clock, evaluation)
        assert share.training == 400 and share.losses.seconds == 4 * per_log
        said[name] = share.advice(1000)
    assert losses == [("state", "report")] * 12
    assert said["evaluations"].startswith("note: evaluations have taken 60 s, validation losses have taken 4 s and ")
    assert said["evaluations"].endswith("training 400 s: --eval_every 1700 (now 1000) makes them a tenth of it")
    assert said["losses"].endswith("training 400 s: --log_every 270 (now 50) makes them a tenth of it")
    assert said["both"].endswith(": --eval_every 4500 (now 1000) --log_every 230 (now 50) make them a tenth of it")


@pytest.mark.parametrize("name", ["PRETRAIN", "AUTOENCODER", "DIFFUSION"])
def test_the_named_flag_is_one_of_the_program(name):
    assert ("sample_every" if name == "DIFFUSION" else "eval_every") in getattr(programs, name).flags


def recipe_flags(script: str, tmp_path: Path) -> dict[str, str]:
    """Name -> value of the flags that a recipe passes to its program; the last of each name counts."""
    words, python = tmp_path / "words", tmp_path / "python"
    python.write_text(
        '#!/usr/bin/env bash\nif [[ "$1" == */pins.py ]]; then exit 0; fi\nprintf "%s\\0" "$@" >"$WORDS"\n'
    )
    python.chmod(0o755)
    environment = {
        "USE_PYTHON": str(python),
        "WORDS": str(words),
        "LATENT_MODEL_PATH": "autoencoder",
        "PATH": "/usr/bin:/bin",
    }
    subprocess.run(["bash", str(ROOT / script)], cwd=tmp_path, env=environment, check=True, timeout=60)
    flags: dict[str, str] = {}
    for word in words.read_text().split("\0")[:-1]:
        if word.startswith("--"):
            name = word[2:]
            flags[name] = ""
        elif flags:
            flags[name] = word
    return flags


# GFLOP of one position, forward: two operations for each weight of a matrix
DENOISER = 0.2  # 12 blocks 768 wide
LANGUAGE_MODELS = {"bart": (0.09, 0.18), "flan_t5": (0.17, 0.25), "mt5": (0.17, 0.58)}  # encoder; decoder with logits
SCORER = 1.5  # GPT-2 large
BEAMS = 4
SEQUENTIAL = 10  # one token after the other is computed at a tenth of the speed of a training batch
LOSSES_EVERY, LOSS_TEXTS = LoopOptions.log_every, ValidationLossOptions.val_loss_examples


def language_model(script: str) -> tuple[float, float]:
    """GFLOP of a token in encoder and decoder; 0 for embeddings, whose rounding to tokens is one product."""
    if "embedding" in script:
        return 0.0, 0.0
    return next((cost for name, cost in LANGUAGE_MODELS.items() if name in script), LANGUAGE_MODELS["bart"])


def shares_of_denoiser(script: str, flags: dict[str, str]) -> dict[str, float]:
    """Arithmetic of evaluations by part, of that of training.

    A step of training is forward and twice as much backward; with self-conditioning half of the texts have an estimate
    before. Losses are those of the weights and of their average.
    """
    length, self_conditions = int(flags.get("max_seq_len", 64)), "self_condition" in flags
    call = DENOISER * (32 if "latent_model_path" in flags else length)
    steps, interval = int(flags["num_train_steps"]), int(flags.get("sample_every", flags["save_and_sample_every"]))
    evaluations, samples = -(-steps // interval), int(flags["num_samples"])
    texts = samples * int(flags.get("seq2seq_candidates", 1))
    batch = int(flags["train_batch_size"]) * int(flags.get("gradient_accumulation_steps", 1))
    training = steps * batch * call * (3.5 if self_conditions else 3.0)
    parts = {
        "sampling": evaluations * texts * int(flags["sampling_timesteps"]) * call,
        "decoding": evaluations * texts * BEAMS * length * language_model(script)[1] * SEQUENTIAL,
        "scoring": evaluations * samples * length * SCORER * 2,  # likelihoods, and states for MAUVE
        "losses": steps / LOSSES_EVERY * LOSS_TEXTS * 2 * call * (1.5 if self_conditions else 1.0),
    }
    return {name: cost / training for name, cost in parts.items()}


def shares_of_autoencoder(script: str, flags: dict[str, str]) -> dict[str, float]:
    """The same. The frozen decoder passes gradients on and gets none; the autoencoder itself is left out everywhere.

    At a validation some texts are decoded thrice more, and losses with and without latents are computed.
    """
    length, (encoder, decoder) = 64, language_model(script)
    steps, validations = int(flags["num_train_steps"]), int(flags["num_train_steps"]) // int(flags["eval_every"])
    training = steps * int(flags["train_batch_size"]) * length * (encoder + 2 * decoder)
    decoded = AutoencoderValidationOptions.eval_texts * BEAMS + 3 * NUM_COMPARED
    losses = (steps / LOSSES_EVERY + 2 * validations) * LOSS_TEXTS
    parts = {
        "decoding": validations * decoded * length * decoder * SEQUENTIAL,
        "losses": losses * length * (encoder + decoder),
    }
    return {name: cost / training for name, cost in parts.items()}


def shares(script: str, flags: dict[str, str]) -> dict[str, float]:
    return (shares_of_autoencoder if "autoencoder" in script else shares_of_denoiser)(script, flags)


@pytest.mark.parametrize("script", RECIPES)
def test_evaluations_of_a_recipe_are_at_most_a_tenth_of_its_arithmetic(script, tmp_path):
    """Sampling, decoding, scoring and validation losses together; precision is that of the publication."""
    flags = recipe_flags(script, tmp_path)
    assert flags["mixed_precision"] == ("fp16" if "diffuseq_v2" in script else "no")
    found = shares(script, flags)
    assert found["losses"] > 0 and sum(found.values()) <= evaluation_share.LARGEST_SHARE, found
    if "autoencoder" in script:
        assert int(flags["eval_every"]) >= 5000 and int(flags["save_every"]) == 1000
        assert int(flags["num_train_steps"]) % 5000 == 0


def test_the_published_intervals_would_be_more_than_a_tenth(tmp_path):
    for script, published in (
        ("scripts/embedding/greetings.sh", {"sample_every": "1000", "num_samples": "50"}),
        ("scripts/diffusion/bart_latent_v-pred.sh", {"sample_every": "5000"}),
    ):
        flags = recipe_flags(script, tmp_path) | published
        assert sum(shares(script, flags).values()) > evaluation_share.LARGEST_SHARE


def test_a_training_says_that_its_evaluations_take_more_than_a_tenth(programs, chain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation_share, "MIN_SECONDS", 0.0)
    flags = "--num_train_steps 3 --save_and_sample_every 1 --num_samples 2"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "evaluations have taken" in line]
    assert len(said) == 1 and "--sample_every 3 (now 1)" in said[0] and said[0].endswith("a tenth of it")

"""Validation costs at most a tenth of training: by the arithmetic of each recipe, and as a run measures it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pipelines import evaluation_share
from pipelines.cli import programs
from pipelines.evaluation_share import EvaluationShare

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


# its only sampling, at the end, by the 2,000 steps that are published
LONG_SAMPLING = {"scripts/embedding/greetings.sh": 0.11}


@pytest.mark.parametrize("script", RECIPES)
def test_sampling_of_a_recipe_is_at_most_a_twentieth_of_its_network_calls(script, tmp_path):
    """The other half of the tenth is for decoding and scoring. A step of training counts three calls, and half a call
    more with self-conditioning; precision is that of the publication."""
    flags = recipe_flags(script, tmp_path)
    assert flags["mixed_precision"] == ("fp16" if "diffuseq_v2" in script else "no")
    steps = int(flags["num_train_steps"])
    if "autoencoder" in script:
        assert int(flags["eval_every"]) >= 5000 and int(flags["save_every"]) == 1000 and steps % 5000 == 0
        return
    interval = int(flags.get("sample_every", flags["save_and_sample_every"]))
    evaluations = -(-steps // interval)
    texts = int(flags["num_samples"]) * int(flags.get("seq2seq_candidates", 1))
    step = int(flags["train_batch_size"]) * int(flags.get("gradient_accumulation_steps", 1))
    calls = step * (3.5 if "self_condition" in flags else 3.0)
    share = evaluations * texts * int(flags["sampling_timesteps"]) / (steps * calls)
    assert share <= LONG_SAMPLING.get(script, evaluation_share.LARGEST_SHARE / 2)


def test_a_training_says_that_its_evaluations_take_more_than_a_tenth(programs, chain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation_share, "MIN_SECONDS", 0.0)
    flags = "--num_train_steps 3 --save_and_sample_every 1 --num_samples 2"
    assert programs.diffusion(f"--latent_model_path {chain / 'ae'}", tmp_path / "run", flags) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "evaluations have taken" in line]
    assert len(said) == 1 and said[0].endswith("--sample_every 3 (now 1) makes them a tenth of it")

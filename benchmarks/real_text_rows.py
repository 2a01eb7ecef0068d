"""The rows of benchmarks/real_text.py: each is a system, with the command that trains it within the wall time of a row.

All but the language models without latents (baselines) are trained by python -m pipelines.recipe, which turns minutes
into steps; a row is what its flags change. `published` is the latent diffusion of Lovelace et al. 2023
(arXiv:2212.09462) at this cost: a Perceiver autoencoder around a frozen encoder-decoder, here one that is trained on
the corpus, and a transformer.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.real_text_corpus import CLASS, SOURCE, Parts
from pipelines import probes
from pipelines.cli.programs import CAUSAL_LM, SEQ2SEQ
from pipelines.probes import PROBE_STEPS
from pipelines.recipe.plan import choose_steps
from utils.errors import UserError
from utils.run_folder import ROOT, write_json

RECIPE, CAUSAL, PAIRS = "recipe", "causal", "pairs"
BASELINES = {CAUSAL: CAUSAL_LM, PAIRS: SEQ2SEQ}  # programs that train a whole system
LANGUAGE_MODEL, ENCODER = "language model", "encoder"  # parts of a system that may also judge it
PROBE_SECONDS = 20.0
DONE = "row.json"  # in the folder of a row that is trained
TRAINING = "training"  # entry of the seconds of a row: those of its program
_PUBLISHED_DENOISER = (
    "--denoiser_variant latent --denoiser_flags=--no_linear_denoiser --sampler ddpm --time_grid uniform"
)
_SCRATCH = f"--way autoencoder {_PUBLISHED_DENOISER} --denoiser_share 0.6 --decoding greedy"


def _published(more: str = "--max_latent_noise 0") -> str:
    """more: further flags of the autoencoder."""
    return (
        f"{_SCRATCH} --num_encoder_latents 16 --dim_ae 64"
        f" --autoencoder_flags '--lm_mode freeze {more} --latent_noise_prob 0.5'"
    )


_PUBLISHED = _published()
_BASELINE = " --lr_schedule cosine --train_batch_size 32"


@dataclass(frozen=True)
class Row:
    """A system. what: in words; flags: of its program; parts: pretrained models of it, which may judge it, too."""

    what: str
    flags: str
    program: str = RECIPE
    parts: tuple[str, ...] = ()
    after: str | None = None  # a row whose folder the flags name as {after}
    condition: str | None = None  # only for corpora with this condition


_BOTH = (LANGUAGE_MODEL, ENCODER)
ROWS = {
    "recipe": Row("the recipe: frozen embeddings, an MLP, a pretrained decoder that knows the noise", "", parts=_BOTH),
    "recipe-states": Row(
        "the recipe without an encoder: pooled states of the language model that decodes them", "--way states",
        parts=(LANGUAGE_MODEL,),
    ),
    "recipe-scratch": Row("the recipe with nothing pretrained", "--way scratch"),
    "recipe-autoencoder": Row("the recipe with an autoencoder, nothing pretrained", "--way autoencoder"),
    "published": Row("the published recipe: Perceiver latents, a frozen language model, a transformer", _PUBLISHED),
    # levers alone: the published recipe with one change
    "robust-autoencoder": Row(
        "published, with a decoder trained on noised latents",
        _published("--max_latent_noise 1 --no_noise_level_conditioning"),
    ),
    "matched-autoencoder": Row(
        "published, with feature matching, and masks on states and latents (COSMOS)",
        _published("--max_latent_noise 0 --feature_matching_weight 1 --state_mask_prob 0.3 --latent_mask_prob 0.1"),
    ),
    "aligned-autoencoder": Row(
        "published, with latents aligned to the encoder's states (REPA, VA-VAE)",
        _published("--max_latent_noise 0 --alignment_weight 0.5"),
    ),
    "conditioned-autoencoder": Row(
        "published, with a decoder that knows the noise of its latents",
        _published("--max_latent_noise 0.6 --noise_level_conditioning"),
    ),
    "variational-autoencoder": Row(
        "published, with latents that have a mean and a variance (KL)",
        _published("--max_latent_noise 0 --kl_weight 0.01"),
    ),
    "token-dropout-autoencoder": Row(
        "published, with hidden tokens at the input of the decoder",
        _published("--max_latent_noise 0 --token_dropout 0.3"),
    ),
    "latent-mask-autoencoder": Row(
        "published, with masked latents", _published("--max_latent_noise 0 --latent_mask_prob 0.1")
    ),
    "state-noise-autoencoder": Row(
        "published, with noise on the encoder's states", _published("--max_latent_noise 0 --state_noise 0.3")
    ),
    "state-mask-autoencoder": Row(
        "published, with masked encoder states", _published("--max_latent_noise 0 --state_mask_prob 0.3")
    ),
    "per-token-autoencoder": Row(
        "published, with one latent for each token",
        f"{_SCRATCH} --dim_ae 64 --autoencoder_flags"
        " '--autoencoder per_token --lm_mode freeze --max_latent_noise 0 --latent_noise_prob 0.5'",
    ),
    "joint": Row("published, and then autoencoder and denoiser train together", f"{_PUBLISHED} --joint"),
    "adapted-decoder": Row(
        "published, with the decoder adapted to the denoiser",
        f"{_PUBLISHED} --adapt_decoder",
    ),
    "causal-decoder": Row(
        "published latents, decoded by the pretrained causal language model",
        f"--way perceiver {_PUBLISHED_DENOISER} --num_encoder_latents 16 --dim_ae 64 --autoencoder_flags"
        " '--lm_mode freeze --max_latent_noise 0 --latent_noise_prob 0.5'",
        parts=(LANGUAGE_MODEL,),
    ),
    "frozen-embeddings": Row(
        "frozen embeddings as latents, decoded by the row causal-scratch, whose minutes come on top",
        "--way pretrained --language_model {after}/model --decoder_flags '--decoder_mode ft'",
        parts=(ENCODER,), after="causal-scratch",
    ),
    # the recipe without one lever
    "recipe-linear-denoiser": Row(
        "the recipe, its denoiser added to the linear one",
        "--denoiser_learning_rate 3e-4 --denoiser_flags=--linear_denoiser", parts=_BOTH,
    ),
    "recipe-no-linear-denoiser": Row(
        "the recipe, its denoiser without the linear one", "--denoiser_flags=--no_linear_denoiser", parts=_BOTH
    ),
    "recipe-no-noise": Row(
        "the recipe, its decoder trained on clean latents", "--decoder_flags '--max_latent_noise 0'", parts=_BOTH
    ),
    "recipe-transformer": Row("the recipe with a transformer as denoiser", "--denoiser_variant latent", parts=_BOTH),
    "recipe-frozen-decoder": Row(
        "the recipe with a frozen language model; prefix vectors train", "--decoder_flags '--decoder_mode freeze'",
        parts=_BOTH,
    ),
    "recipe-adapted": Row("the recipe, its decoder adapted to the denoiser", "--adapt_decoder", parts=_BOTH),
    "recipe-whitened": Row(
        "the recipe, the channels of its latents made independent", "--decoder_flags '--latent_scaling whiten'",
        parts=_BOTH,
    ),
    "recipe-segments": Row(
        "the recipe with four vectors of equal pieces of a text", "--pooling segments --num_sentence_latents 4",
        parts=_BOTH,
    ),
    # the recipe with one change of its diffusion process
    "recipe-tan-schedule": Row(
        "the recipe with more noise at every time (tan-d, d = 3)",
        "--denoiser_flags '--train_schedule tan --scale 3'", parts=_BOTH,
    ),
    "recipe-shifted-schedule": Row(
        "the recipe with its schedule shifted by the size of its latents (RAE)",
        "--denoiser_flags=--scale_by_dimension", parts=_BOTH,
    ),
    "recipe-flow-x0": Row(
        "the recipe on the linear path, with x0 predicted and the loss of x0",
        "--denoiser_flags '--train_schedule rectified_flow --objective pred_x0'", parts=_BOTH,
    ),
    "recipe-flow-velocity": Row(
        "the recipe on the linear path, with x0 predicted and the loss of the velocity",
        "--denoiser_flags '--train_schedule rectified_flow --objective pred_x0 --loss_weighting flow'", parts=_BOTH,
    ),
    "recipe-uniform-times": Row(
        "the recipe with training times spread evenly", "--denoiser_flags '--schedule_sampler stratified'", parts=_BOTH
    ),
    "recipe-logit-normal": Row(
        "the recipe with more training times where there is much noise (ELF)",
        "--denoiser_flags '--schedule_sampler logit_normal --config time_logit_mean=0.8 --config time_logit_std=0.8'",
        parts=_BOTH,
    ),
    "recipe-adaptive-times": Row(
        "the recipe with training times where the error of x0 grows",
        "--denoiser_flags '--schedule_sampler adaptive'", parts=_BOTH,
    ),
    "recipe-self-conditioning": Row(
        "the recipe with self-conditioning in 95 of 100 texts, on perturbed estimates",
        "--denoiser_flags '--train_prob_self_cond 0.95 --self_cond_noise 0.3'", parts=_BOTH,
    ),
    "recipe-renoised": Row(
        "the recipe, sampled by ddim that goes back to more noise before each step",
        "--sampler ddim --denoiser_flags '--renoise_gamma 1.5'", parts=_BOTH,
    ),
    "recipe-learned-variance": Row(
        "the recipe on a discrete chain, with a learned variance of its ddpm steps",
        "--sampler ddpm --time_grid uniform --denoiser_flags '--beta_schedule cosine --learned_variance'", parts=_BOTH,
    ),
    # without latents
    "causal-lm": Row(
        "the same language model, fine-tuned without latents",
        "--model {language_model} --lora_rank 16 --learning_rate 1e-3" + _BASELINE, CAUSAL, (LANGUAGE_MODEL,),
    ),
    "causal-scratch": Row(
        "a causal language model from scratch", "--tokenizer bpe --vocab_size 4000 --d_model 256 --layers 6 --heads 4"
        " --learning_rate 1e-3" + _BASELINE, CAUSAL,
    ),
    "seq2seq-scratch": Row(
        "an encoder-decoder from scratch, trained from sources to texts", "--tokenizer bpe --vocab_size 4000"
        " --d_model 256 --layers 3 --heads 4 --learning_rate 3e-4" + _BASELINE, PAIRS, condition=SOURCE,
    ),
}  # fmt: skip


# parts of a row -> the row whose first stages, if it is trained and they are the same, are taken over (--reuse)
FIRST_OF_PARTS = {_BOTH: "recipe", (): "published"}


def reused_row(name: str, root: Path) -> Path | None:
    """The folder of the trained row that may hold first stages of this one."""
    first = FIRST_OF_PARTS.get(ROWS[name].parts)
    if first is None or first == name or ROWS[name].program != RECIPE:
        return None
    folder = root / "rows" / first
    return folder if (folder / DONE).is_file() else None


def training_order() -> list[str]:
    """All rows, each after the row that it uses."""
    used = [row.after for row in ROWS.values() if row.after is not None]
    return [*used, *(name for name in ROWS if name not in used)]


@dataclass(frozen=True)
class Models:
    """The pretrained models of the rows, and what the user adds to their flags."""

    language_model: str | None
    encoder_model: str | None
    more_flags: Mapping[str, str] | None = None  # row -> further flags


class RowFailed(UserError):
    """A row that its program, or the row that it uses, does not let finish; other rows can be trained all the same."""


def check_models(names: Sequence[str], root: Path, models: Models) -> None:
    """UserError if a row that is not trained yet lacks a pretrained model: others would take hours before it."""
    for name in names:
        if (root / "rows" / name / DONE).is_file():
            continue
        if LANGUAGE_MODEL in ROWS[name].parts and models.language_model is None:
            raise UserError(f"row {name} needs a language model: name one with --language_model")
        if ENCODER in ROWS[name].parts and models.encoder_model is None:
            raise UserError(f"row {name} needs an encoder: name one with --encoder_model")


def train_row(name: str, root: Path, parts: Parts, models: Models, minutes: float) -> Path:
    """Train a row unless it is trained; returns its folder. RowFailed where its program fails."""
    from pipelines.stages import StageTimer

    folder, row = root / "rows" / name, ROWS[name]
    if (folder / DONE).is_file():
        print(f"{name}: trained before", flush=True)
        return folder
    check_models([name], root, models)
    if row.after is not None and not (root / "rows" / row.after / DONE).is_file():
        raise RowFailed(f"row {name} uses the row {row.after}: run that row before")
    if row.condition not in (None, parts.condition):
        raise UserError(f"row {name} is for a corpus by {row.condition}, and this one is not: leave it out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    clock = StageTimer(_seconds_file(folder))  # over all invocations
    make_command = _recipe if row.program == RECIPE else baseline_command
    command = clock.time("probe", lambda: make_command(name, root, parts, models, minutes))
    print(f"\n== {name}: {row.what}\n   {shlex.join(['python', *command[1:]])}", flush=True)
    code = clock.time(TRAINING, lambda: _run(command))
    if code:
        from utils.preemption import EXIT_CODES

        error = UserError if code in EXIT_CODES.values() else RowFailed  # a signal is meant for all rows
        raise error(f"row {name} ended with {code}: repeat the command to go on with it")
    seconds = clock.with_total()["total"]
    write_json(folder / DONE, {"what": row.what, "minutes": minutes, "seconds": seconds, "command": command[1:]})
    print(f"{name}: trained in {seconds / 60:.1f} min", flush=True)
    return folder


def _run(command: Sequence[str]) -> int:
    """Run a program from the root of the project. Returns its exit code.

    A signal that ends this process, such as Ctrl-C, waits for the program, which saves a checkpoint first.
    """
    from utils.preemption import exit_on_termination

    process = subprocess.Popen(command, cwd=ROOT)
    try:
        with exit_on_termination():
            return process.wait()
    except (KeyboardInterrupt, SystemExit):
        process.terminate()  # it may have got none; a second signal changes nothing
        process.wait()
        raise


def _seconds_file(folder: Path) -> Path:
    """The seconds of the row of this folder, beside it: training begins with an empty folder."""
    return folder.with_name(f"{folder.name}.seconds.json")


def sampled_run(folder: Path) -> Path:
    """The run folder of a row that samples texts."""
    if not (folder / "recipe.json").is_file():
        return folder
    joint = folder / "joint"  # of a recipe with --joint
    return joint if (joint / "args.json").is_file() else folder / "diffusion"


def row_flags(name: str, root: Path, models: Models) -> list[str]:
    """The flags of a row, those that the user adds last."""
    row = ROWS[name]
    places = {"{language_model}": models.language_model or "", "{after}": str(root / "rows" / (row.after or ""))}
    words = shlex.split(row.flags)
    for place, value in places.items():
        words = [word.replace(place, value) for word in words]
    return words + shlex.split((models.more_flags or {}).get(name, ""))


def _recipe(name: str, root: Path, parts: Parts, models: Models, minutes: float) -> list[str]:
    words = row_flags(name, root, models)
    for flag, value in (("--language_model", models.language_model), ("--encoder_model", models.encoder_model)):
        if flag not in words:
            words += [flag, value or "none"]
    reused = reused_row(name, root)
    if reused is not None and "--reuse" not in words:
        words += ["--reuse", str(reused)]
    return [
        *(sys.executable, "-m", "pipelines.recipe", *parts.flags(root / "corpus")),
        *("--minutes", f"{minutes:g}", "--no_evaluation", "--output_dir", str(root / "rows" / name), *words),
    ]


def sequence_length(texts: Sequence[str]) -> int:
    """--max_seq_len of a baseline, in tokens: 99 of 100 texts fit, at one and a half tokens a word. 64 to 256.

    The recipe chooses its own by the same share of the texts.
    """
    words = sorted(len(text.split()) for text in texts)
    longest = 1.5 * words[int(0.99 * (len(words) - 1))] + 2  # with a start and an end
    return min(256, max(64, 8 * math.ceil(longest / 8)))


def baseline_command(name: str, root: Path, parts: Parts, models: Models, minutes: float) -> list[str]:
    """A probe, then the training of as many steps as fit; an interrupted one is resumed."""
    from pipelines.stages import StageTimer
    from utils.checkpoints import has_checkpoint
    from utils.preemption import exit_on_termination

    folder, seconds = root / "rows" / name, 60 * minutes
    record, program = folder.with_name(name + ".json"), BASELINES[ROWS[name].program]
    length = ["--max_seq_len", str(sequence_length(parts["train"].texts))]
    words = [*parts.flags(root / "corpus"), *length, *row_flags(name, root, models)]
    if parts.condition == CLASS:
        words.append("--class_conditional")
    asked = {"minutes": minutes, "flags": row_flags(name, root, models)}
    if not record.is_file():
        began = time.monotonic()
        flags = ["--num_train_steps", str(PROBE_STEPS), "--eval_every", str(PROBE_STEPS), "--log_every", "1"]
        flags += ["--config", "val_loss_examples=1", "--lr_warmup_steps", "0"]
        probed = folder.with_name(name + ".probe")
        command = probes.command_of(program, [*probes.uncompiled(program), *words, *flags, "--output_dir", str(probed)])
        try:
            with exit_on_termination():  # which ends the probe, too
                rate = probes.probe(command, probed, min(PROBE_SECONDS, 0.05 * seconds), cwd=ROOT)
        except UserError as error:
            raise RowFailed(f"row {name}: {error}") from None
        left = seconds - (time.monotonic() - began)
        # ten validations with their samples take seven minutes of an hour
        steps = choose_steps(0.9 * left, rate.steps_per_second, rate.started, 32)
        longest = max(left, rate.started + 20 / rate.steps_per_second)
        write_json(record, {**steps.record(), "max_seconds": longest, "asked": asked})
    planned: dict[str, Any] = json.loads(record.read_text())
    if planned.get("asked", asked) != asked:
        raise UserError(
            f"row {name} was begun with other --minutes or --row_flags: type them as they were to go on with it, or "
            f"remove {record} and {folder} to begin again"
        )
    longest = planned["max_seconds"]
    if has_checkpoint(folder):
        logged = probes.logged_seconds(folder)  # after a kill the log alone has seconds of the program
        spent = max(StageTimer(_seconds_file(folder)).seconds.get(TRAINING, 0.0), logged)
        limit = ["--max_seconds", f"{max(1.0, longest - spent):.0f}"]
        return probes.command_of(program, ["--resume_training", "--resume_dir", str(folder), *limit])
    shutil.rmtree(folder, ignore_errors=True)
    steps_flags = ["--num_train_steps", str(planned["steps"]), "--lr_warmup_steps", str(planned["warmup"])]
    # the best of ten checkpoints: a language model without latents overfits a small corpus
    steps_flags += ["--eval_every", str(max(1, planned["steps"] // 10)), "--log_every", "10"]
    steps_flags += ["--max_seconds", f"{longest:.0f}"]
    return probes.command_of(program, [*words, *steps_flags, "--output_dir", str(folder)])

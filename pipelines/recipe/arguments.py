"""The flags of the recipe, and what they must be."""

from __future__ import annotations

import math
import shlex
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dataset_utils.user_files import corpus_name
from pipelines.recipe.models import EXPECTED
from pipelines.recipe.plan import WAYS
from pipelines.recipe.stages import OWN_FLAGS, STAGE_ROWS, STEPS_FLAGS
from utils.argparse_utils import OneLineParser, choices_of
from utils.errors import UserError

CORPUS_FLAGS = (
    "dataset_name", "data_dir", "train_file", "valid_file", "test_file", "text_column", "label_column", "source_column",
)  # fmt: skip
# Another value of these trains nothing anew.
FREE = ("output_dir", "reuse", "dry_run", "no_evaluation", "num_samples", "scorer", "mauve_encoder")
CHOSEN = {  # choice -> type and help of the flag that replaces it
    "way": (
        str,
        "pretrained (frozen embeddings, a pretrained decoder), states (no encoder: pooled states of the pretrained "
        "decoder), perceiver (an autoencoder is trained here; the same decoder), scratch (nothing pretrained: a "
        "language model is trained here, whose pooled states are latents), or autoencoder (nothing pretrained: a BART "
        "and an autoencoder around it)",
    ),
    "max_train_texts": (int, "training texts to use"),
    "max_seq_len": (int, "longest text, in tokens"),
    "pooling": (str, "mean, first, last, segments, sentences or learned: how a text becomes vectors"),
    "num_sentence_latents": (int, "vectors of a text, where --pooling makes several"),
    "condition": (str, "class, source or none: what the denoiser is conditioned on"),
    "denoiser_variant": (str, "mlp or latent: a residual MLP, or a transformer over several vectors"),
    "tx_dim": (int, "width of the denoiser"),
    "tx_depth": (int, "blocks of the denoiser"),
    "denoiser_batch_size": (int, "texts a step of the denoiser"),
    "denoiser_share": (float, "part of the training time that the denoiser gets, below 1"),
    "denoiser_learning_rate": (float, "peak learning rate of the denoiser"),
    "sampling_timesteps": (int, "steps of the sampler"),
    "sampler": (str, "the sampler: ddpm, dpmpp, dpmpp_sde, ..."),
    "time_grid": (str, "how its steps are spaced: uniform, karras, ..."),
    "decoding": (str, "how texts are written: nucleus, greedy, beam, ..."),
    "top_p": (float, "--decoding nucleus draws from the likeliest tokens that together have this probability"),
    "cls_free_guidance": (float, "weight of guidance by class or source; 1: none"),
    "decoder_batch_size": (int, "texts a step of the decoder"),
}
# The same of models that are trained here.
CHOSEN_FROM_SCRATCH = {
    "d_model": (int, "width of the language model that is trained here"),
    "layers": (int, "its layers; of a BART those of its encoder, and of its decoder"),
    "vocab_size": (int, "its vocabulary"),
    "num_encoder_latents": (int, "latents of a text of the autoencoder"),
    "dim_ae": (int, "width of such a latent"),
}

STAGE_TITLES = {
    "language_model": "language model that is trained here",
    "adapted": "adaptation of the decoder",
    "joint": "joint training",
}


def parser(description: str | None = None) -> ArgumentParser:
    made = OneLineParser(
        prog="python -m pipelines.recipe",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    corpus = made.add_argument_group("corpus, as in all programs")
    for name in CORPUS_FLAGS:
        corpus.add_argument(f"--{name}", help=f"{name.replace('_', ' ')}, as for train_text_diffusion.py")
    add("--minutes", type=float, required=True, help="wall time of all trainings together, on this machine")
    add("--output_dir", type=Path, metavar="DIR", help="folder of everything; named again, it goes on (default: "
        "runs/recipe_ and the name of the corpus)")  # fmt: skip
    add("--language_model", metavar="MODEL", help="causal language model that writes the texts: a folder, a hub id, or "
        f"none (default: {EXPECTED['language_model']}, if it or its package is installed)")  # fmt: skip
    add("--encoder_model", metavar="MODEL", help="encoder whose embeddings are the latents: a folder, a hub id, or "
        f"none (default: {EXPECTED['encoder_model']}, if it or its package is installed)")  # fmt: skip
    add("--adapt_decoder", action="store_true", default=None, help="in the end fine-tune the decoder on latents of the "
        "denoiser (default of states, and of several vectors)")  # fmt: skip
    add("--no_adapt_decoder", dest="adapt_decoder", action="store_false", help="do not (default otherwise)")
    add("--joint", action="store_true", default=None, help="after the denoiser train it and the autoencoder together "
        "(only with --way autoencoder)")  # fmt: skip
    add("--count_evaluation", action="store_true", help="the minutes contain the evaluation, too")
    add("--reuse", type=Path, metavar="DIR", help="folder of another recipe: its first stages are taken over as long "
        "as they are the same here, and their time counts as spent")  # fmt: skip
    add("--no_evaluation", action="store_true", help="train alone")
    add("--dry_run", action="store_true", help="read the texts, measure the encoder and print choices and commands; "
        "nothing is trained, and nothing written but pretrained models, which are unpacked if need be")  # fmt: skip
    judged = made.add_argument_group("evaluation")
    judged.add_argument("--num_samples", type=int, help="texts to sample and judge (default: 1000, or as many as take "
                        "half of the minutes, with --count_evaluation their share of them)")  # fmt: skip
    judged.add_argument("--scorer", metavar="MODEL", help="causal language model that judges (default: smollm2-135m if "
                        "it is there, else --language_model, else a small one that is trained)")  # fmt: skip
    judged.add_argument("--mauve_encoder", metavar="MODEL", help="sentence encoder that judges (default: minilm-l6 if "
                        "it is there, else --encoder_model)")  # fmt: skip
    ours = made.add_argument_group("replace a choice")
    for name, (kind, text) in (CHOSEN | CHOSEN_FROM_SCRATCH).items():
        ours.add_argument(f"--{name}", type=kind, help=text)
    for name in STEPS_FLAGS:
        stage = STAGE_TITLES.get(name.removesuffix("_steps"), name.removesuffix("_steps"))
        ours.add_argument(f"--{name}", type=int, help=f"steps of the {stage}, instead of those that fit its time")
    for name in OWN_FLAGS:
        stage = STAGE_TITLES.get(name.removesuffix("_flags"), name.removesuffix("_flags"))
        ours.add_argument(f"--{name}", metavar="FLAGS", help=f'more flags of the program of the {stage}: "..."')
    return made


def typed_choices(args: Namespace) -> dict[str, Any]:
    """What was typed, by name, of all that determines the trainings: a folder that was begun goes on with the same."""
    return {name: value for name, value in vars(args).items() if value is not None and name not in FREE}


def unused(
    given: Mapping[str, Any], choices: Collection[str], stages: Collection[str], models: Mapping[str, str | None]
) -> list[str]:
    """A line for each flag that was typed and changes nothing here. choices: their names. stages: those trained.

    models: flag of a pretrained model -> the one that the system has, None for none.
    """
    trained = {STAGE_ROWS[name].steps_flag for name in stages}
    way = [name for name in (*CHOSEN, *CHOSEN_FROM_SCRATCH) if name not in choices]
    names = [name for name in (*way, *(flag for flag in STEPS_FLAGS if flag not in trained)) if name in given]
    lines = [f"--{name} changes nothing here: no stage reads it ({', '.join(stages)})" for name in names]
    for flag, model in models.items():
        typed = given.get(flag)
        if typed is not None and typed.lower() != "none" and model is None:
            lines.append(f"--{flag} {typed} is no part of this system, whose latents are made without it; it may judge")
    return lines


def default_folder(args: Namespace) -> Path:
    """Where everything goes unless --output_dir says it: the same for the same corpus, so that a command goes on."""
    name = args.dataset_name or (corpus_name(Path(args.train_file)) if args.train_file else Path(args.data_dir).stem)
    return Path("runs") / f"recipe_{name or 'corpus'}"


def check_arguments(args: Namespace) -> None:
    """UserError for what no budget makes sense of. Names the folder where none was given."""
    if not (math.isfinite(args.minutes) and args.minutes > 0):
        raise UserError(f"--minutes {args.minutes:g} is no time: give more than 0, such as 60")
    if not (args.dataset_name or args.train_file or args.data_dir):
        raise UserError("no corpus given: add --train_file FILE, or --dataset_name NAME")
    if args.num_samples is not None and args.num_samples < 2:
        raise UserError(f"--num_samples {args.num_samples} is too small: give 2 or more, 1000 for stable numbers")
    if args.output_dir is None:
        args.output_dir = default_folder(args)
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir} is a file: name a folder")
    if args.condition is not None:
        choices_of("--condition", args.condition, ("class", "source", "none"))
    if args.way is not None:
        choices_of("--way", args.way, WAYS)
    for name in (*CHOSEN, *CHOSEN_FROM_SCRATCH, *STEPS_FLAGS):
        value = getattr(args, name)
        if isinstance(value, int | float) and value <= 0:
            raise UserError(f"--{name} {value} is too small: give a number above 0")
    if args.denoiser_share is not None and args.denoiser_share >= 1:
        raise UserError(f"--denoiser_share {args.denoiser_share:g} leaves no time for the decoder: give less than 1")
    for name in OWN_FLAGS:
        try:
            shlex.split(getattr(args, name) or "")
        except ValueError as error:
            raise UserError(f"--{name}: {error}: quote it as in a shell") from None

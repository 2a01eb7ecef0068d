"""The configuration of a saved pipeline: args.json of the run without places on this machine, and sampling flags."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipelines.builders.models import AUTOENCODER_COPY, ENCODER_COPY
from pipelines.builders.text_decoders import TEXT_DECODER_COPY
from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.presets import PRESETS
from pipelines.cli.programs import DIFFUSION
from pipelines.pretrained.folder import CLASSIFIER, CONTEXT_ENCODER, DECODER_MODEL, LANGUAGE_MODEL
from utils.cli.args_io import read_args
from utils.cli.settings import Settings
from utils.errors import UserError
from utils.pretrained import PART_OF_FOLDER

# Groups of the configuration whose flags change samples, and further flags that do.
_SAMPLING_GROUPS = ("sampling", "clamp", "control", "generation", "decoding", "kernels")
SAMPLING_FLAGS = frozenset(
    name for name, held in DIFFUSION.group_of.items() if held in _SAMPLING_GROUPS and name != "draft_model"
) | {"decoding", "eval_batch_size", "mixed_precision"}
# Flags that name files and folders of this machine.
PATH_FLAGS = (
    "data_dir", "train_file", "valid_file", "test_file", "output_dir", "save_dir", "resume_dir", "config",
    "latent_cache_dir", "enc_dec_model", "latent_model_path", "context_encoder", "draft_model", "distill_run",
    "joint_run", "encoder_model", "decoder_model", "denoiser_run", "cache_dir", "alignment_model",
    "init_path", "vocab", "embedding_init", "encoder_config", "scorer", "mauve_encoder", "bertscore_model",
    "classifier", "latent_classifier",
)  # fmt: skip
# A flag that is given -> the sampling flags that a saved pipeline no longer sets: they belong to another value of it.
REPLACES: Mapping[str, frozenset[str]] = {
    "preset": frozenset(name for row in PRESETS.values() for name in row),
    "sampler": frozenset(("ddim_sampling_eta", "posterior_variance", "renoise_gamma")),
    "sampling_timesteps": frozenset(("timestep_respacing",)),
    "timestep_respacing": frozenset(("sampling_timesteps", "time_grid")),
    "time_grid": frozenset(("grid_shift", "grid_rho", "timestep_respacing")),
}


def sampling_flags(settings: Settings[DiffusionConfig]) -> dict[str, Any]:
    """The sampling flags that were given when a run was loaded: the saved pipeline sets them again."""
    flags = {name: settings.get(name) for name in sorted(SAMPLING_FLAGS & settings.explicit)}
    if flags.get("latent_classifier"):
        flags["latent_classifier"] = CLASSIFIER
    return flags


def flags_to_set(saved: Mapping[str, Any], given: Collection[str], folder: Path) -> dict[str, Any]:
    """The sampling flags of a saved pipeline, less those that the flags given now replace.

    given: names. UserError for a flag that a saved pipeline never sets.
    """
    for name, value in saved.items():
        if name not in SAMPLING_FLAGS or not isinstance(value, str | int | float | bool | None):
            raise UserError(f"{folder} is damaged: {name[:80]!r} is no sampling flag: save or download it again")
        if name == "latent_classifier" and value not in (None, CLASSIFIER):
            raise UserError(f"{folder} is damaged: its classifier lies outside the folder: save or download it again")
    gone, new = set(given), set(given)
    while new := set().union(*(REPLACES.get(name, frozenset()) for name in new)) - gone:  # what it replaces goes, too
        gone |= new
    kept = {name: value for name, value in saved.items() if name not in gone}
    if kept.get("latent_classifier"):
        kept["latent_classifier"] = str(folder / CLASSIFIER)
    return kept


def portable_args(saved: Mapping[str, Any], *, context: str | None) -> dict[str, Any]:
    """args.json of a run, for a folder that holds all of it. context: folder of the context encoder; None: none."""
    args = dict(saved)
    for name in PATH_FLAGS:
        if name in args:
            args[name] = without_folders(args[name])
    if args.get("latent_model_path"):
        args["latent_model_path"] = TEXT_DECODER_COPY if args.get("text_decoder") else AUTOENCODER_COPY
    if args.get("encoder_config"):
        args["encoder_config"] = ENCODER_COPY
    if args.get("converted_from"):
        args["converted_from"] = Path(args["converted_from"]).name
    if "enc_dec_model_relative" in args or "language_model_fingerprint" in args:
        args["enc_dec_model_relative"] = PART_OF_FOLDER + LANGUAGE_MODEL
    if "context_model" in args:
        args["context_model"] = None if context is None else without_folders(args["context_model"]) or CONTEXT_ENCODER
        args["context_model_relative"] = None if context is None else PART_OF_FOLDER + context
    for name in ("models_relative", "teacher_relative", "latent_model_path_relative"):
        args.pop(name, None)
    if isinstance(args.get("corpus"), Mapping):
        args["corpus"] = {**args["corpus"], "places": {}}
    return args


def check_inside(args: Mapping[str, Any], folder: Path) -> None:
    """UserError if args.json of a saved pipeline names a model outside its folder, which would be read instead."""
    allowed = {None, PART_OF_FOLDER + LANGUAGE_MODEL, PART_OF_FOLDER + CONTEXT_ENCODER}
    for name in ("enc_dec_model_relative", "context_model_relative"):
        if args.get(name) not in allowed:
            raise UserError(f"{folder} is damaged: {name} of args.json lies outside it: save or download it again")


def portable_decoder_args(saved: Mapping[str, Any], *, in_folder: bool) -> dict[str, Any]:
    """args.json of a text decoder whose models are folders of the saved pipeline, its adapters merged into one of them.

    in_folder: whether the latents are of an autoencoder, which lies in the decoder's folder.
    """
    args = portable_args(saved, context=None)
    reader = "encoder_model" if saved["latent_space"] == "sentence" else "enc_dec_model"
    return args | {
        "latent_model_path": AUTOENCODER_COPY if in_folder else None,
        "decoder_mode": "freeze",
        "decoder_model_relative": f"{PART_OF_FOLDER}../{DECODER_MODEL}",
        f"{reader}_relative": f"{PART_OF_FOLDER}../{LANGUAGE_MODEL}",
    }


def check_decoder_inside(folder: Path) -> None:
    """UserError if args.json of the text decoder of a saved pipeline names a model outside the pipeline's folder."""
    if not (folder / TEXT_DECODER_COPY / "args.json").is_file():
        return
    args = read_args(folder / TEXT_DECODER_COPY)
    allowed = {None, *(f"{PART_OF_FOLDER}../{name}" for name in (LANGUAGE_MODEL, DECODER_MODEL))}
    for name in ("decoder_model_relative", "encoder_model_relative", "enc_dec_model_relative"):
        if args.get(name) not in allowed:
            raise UserError(
                f"{folder} is damaged: {name} of {TEXT_DECODER_COPY}/args.json lies outside it: save or download it "
                "again"
            )


def without_folders(value: Any) -> Any:
    """The last part of a path; a hub id, such as owner/name, stays."""
    if not isinstance(value, str) or not re.search(r"[/\\]", value):
        return value
    is_hub_id = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value) and not Path(value).exists()
    return value if is_hub_id else re.split(r"[/\\]", value.rstrip("/\\"))[-1]

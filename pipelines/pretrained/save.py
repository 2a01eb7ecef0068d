"""Save a pipeline as a complete folder, which loads offline, in another place, and gives the same texts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_models.causal.decoders import decoder_class
from latent_models.causal.latent_decoder import FLAG
from latent_models.causal.model import CausalLM
from latent_models.language_models import LanguageModel
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.decoded import AUTOENCODER, DecodedSpace, causal_fingerprint
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.sentence import SentenceSpace
from latent_models.speculative.draft_model import copy_draft_model, has_draft_model
from pipelines.builders.draft_models import DRAFT_MODEL_COPY, draft_model_folder
from pipelines.builders.embeddings import save_embeddings
from pipelines.builders.models import AUTOENCODER_COPY, autoencoder_folder, save_encoder_config
from pipelines.builders.text_decoders import TEXT_DECODER_COPY
from pipelines.load_run import LoadedRun
from pipelines.pretrained.arguments import portable_args, portable_decoder_args, sampling_flags
from pipelines.pretrained.card import CardOptions, make_card, portable_scores, read_scores
from pipelines.pretrained.folder import (
    CARD,
    CLASSIFIER,
    CONTEXT_ENCODER,
    DECODER_MODEL,
    LANGUAGE_MODEL,
    SCORES,
    SUFFIXES,
    WEIGHTS,
    added_file,
    is_saved_pipeline,
    never_read,
    write_index,
)
from utils import checkpoint_folder, checkpoints
from utils.cli.args_io import read_args
from utils.errors import UserError, is_disk_full
from utils.pretrained import PART_OF_FOLDER, read_checkpoint
from utils.run_folder import write_json, write_text

_HOW_IT_WAS_FOUND = ("is_local", "local_files_only", "name_or_path")  # what transformers says of this machine


def save_pipeline(run: LoadedRun, folder: Path, card: CardOptions) -> None:
    """Write the folder under another name, then rename: a failure leaves what was there.

    An earlier saved pipeline is replaced, and what loading never reads stays. UserError if the folder holds anything
    else, or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_target(folder)
    partial, old = (folder.with_name(f"{folder.name}.{os.getpid()}.{what}") for what in ("partial", "replaced"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(run, partial, card)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        _keep_others(old, folder)
    except OSError as error:
        reason = "the disk is full" if is_disk_full(error) else error.strerror or str(error)
        raise UserError(f"{folder} cannot be written ({reason}): name another folder, or make room") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _keep_others(old: Path, folder: Path) -> None:
    """Move what is no part of a pipeline from a replaced folder into the new one."""
    for path in never_read(old) if old.is_dir() else ():
        if not (folder / path.name).exists():
            os.replace(path, folder / path.name)


def check_target(folder: Path) -> None:
    """UserError if a pipeline cannot be saved to a folder, because something else is there."""
    if folder.is_dir():
        if any(folder.iterdir()) and not is_saved_pipeline(folder):
            raise UserError(f"{folder} holds other files, which saving would replace: name a new folder")
        if is_saved_pipeline(folder) and (name := added_file(folder)) is not None:
            raise UserError(
                f"{folder / name} was not saved with the pipeline, and saving again would remove it: move it"
            )
    elif folder.exists():
        raise UserError(f"{folder} is a file: name a folder")


def _write(run: LoadedRun, folder: Path, card: CardOptions) -> None:
    components, settings = run.components, run.settings
    weights = components.model.state_dict()
    tensors = {name: weights[name] for name in run.weight_names}
    checkpoint_folder.write(folder / WEIGHTS, {"model": tensors}, {"step": run.step})
    space = components.space.space
    context = _write_context_encoder(run, folder)
    args = portable_args(settings.checkpoint_args, context=context)
    if components.context is not None:
        args["context_fingerprint"] = components.context.model.fingerprint()  # of weights that trained, too
    if isinstance(space, EmbeddingSpace):
        save_embeddings(space, folder)
    else:
        model: LanguageModel = space.language_model  # type: ignore[assignment]
        _write_language_model(model, folder / LANGUAGE_MODEL)
        if isinstance(space, CompressedSpace):
            _write_autoencoder(run, run.autoencoder_args, space, folder / AUTOENCODER_COPY)
        elif isinstance(space, DecodedSpace):
            _write_text_decoder(run, space, folder)
        elif args.get("language_model_fingerprint"):
            args["language_model_fingerprint"] = model.fingerprint()
    save_encoder_config(components.model.denoiser, folder)
    if settings.config.control.latent_classifier:
        _write_classifier(Path(settings.config.control.latent_classifier), folder / CLASSIFIER)
    scores = portable_scores(read_scores(run.folder))
    if scores:
        write_json(folder / SCORES, scores)
    write_json(folder / "args.json", args)
    flags = sampling_flags(settings)
    write_text(folder / CARD, str(make_card(run, args, flags, scores, card)))
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.suffix not in SUFFIXES and path.name != CARD:
            path.unlink()  # chat templates and the like, which nothing here reads
        elif path.name == "tokenizer_config.json":
            config = json.loads(path.read_text(encoding="utf-8"))
            write_json(path, {name: value for name, value in config.items() if name not in _HOW_IT_WAS_FOUND})
    write_index(folder, flags)


def _write_language_model(model: LanguageModel | CausalLM, folder: Path) -> None:
    if (backend := getattr(model.tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()  # of the last call, which the files would hold otherwise; each call sets its own
        backend.no_padding()
    model.save_pretrained(folder)


def _write_text_decoder(run: LoadedRun, space: DecodedSpace, folder: Path) -> None:
    """What trained beside the decoder's language model, into whose folder adapters and trained weights go."""
    lm = space.decoder.lm
    _write_language_model(lm, folder / DECODER_MODEL)
    own, compressed = folder / TEXT_DECODER_COPY, isinstance(space.space, CompressedSpace)
    args = portable_decoder_args(run.autoencoder_args, in_folder=compressed)
    frozen = [f"{part}." for part in ("decoder.lm", "space.language_model", "space.autoencoder")]
    tensors = {name: x for name, x in space.state_dict().items() if not name.startswith(tuple(frozen))}
    checkpoints.save_best(own, {"model": tensors}, {"step": 0})
    name = str(folder / DECODER_MODEL)
    merged = decoder_class(name).language_model.from_pretrained(name, flag=FLAG)
    facts = {"decoder_fingerprint": causal_fingerprint(merged)}
    key = "encoder_fingerprint" if isinstance(space.space, SentenceSpace) else "language_model_fingerprint"
    write_json(own / "args.json", {**args, **facts, key: space.language_model.fingerprint()})
    if isinstance(space.space, CompressedSpace):
        source = autoencoder_folder(run.settings, run.folder) / AUTOENCODER
        _write_autoencoder(run, read_args(source), space.space, own / AUTOENCODER, up="../../")


def _write_autoencoder(
    run: LoadedRun, saved: Mapping[str, Any], space: CompressedSpace, folder: Path, up: str = "../"
) -> None:
    """The weights in memory, which may be fewer than those of its run: the language model has a folder of its own.

    saved: args.json of the autoencoder. up: from its folder to that of the pipeline.
    """
    args = portable_args(saved, context=None)
    write_json(folder / "args.json", {**args, "enc_dec_model_relative": f"{PART_OF_FOLDER}{up}{LANGUAGE_MODEL}"})
    tensors = {f"autoencoder.{name}": x for name, x in space.autoencoder.state_dict().items()}
    tensors |= {f"heads.{name}": x for name, x in space.heads.state_dict().items()}
    facts = {"step": 0, "language_model_fingerprint": space.language_model.fingerprint()}
    checkpoints.save_best(folder, {"model": tensors}, facts)
    if has_draft_model(space):
        source = draft_model_folder(run.settings, autoencoder_folder(run.settings, run.folder))
        assert source is not None, "an attached draft model comes from a folder"
        copy_draft_model(source, folder / DRAFT_MODEL_COPY)
        _make_portable(folder / DRAFT_MODEL_COPY)


def _write_context_encoder(run: LoadedRun, folder: Path) -> str | None:
    """Save the context encoder, unless it is the language model of the latents. Returns the folder that holds it."""
    context = run.components.context
    if context is None or context.shared:
        return None
    latents_model = getattr(run.components.space.space, "language_model", None)
    if not context.trained and latents_model is not None and context.model.name == latents_model.name:
        return LANGUAGE_MODEL  # a second copy, which reads another language
    _write_language_model(context.model, folder / CONTEXT_ENCODER)
    return CONTEXT_ENCODER


def _write_classifier(source: Path, folder: Path) -> None:
    args = read_args(source)
    checkpoint = read_checkpoint(source, args.get("best_metric") is not None)
    write_json(folder / "args.json", {**args, "best_metric": None})  # the copy holds one checkpoint, as its newest
    _make_portable(folder)
    checkpoints.save(folder, {"model": checkpoint.tensors["model"]}, {"step": checkpoint.step})


def _make_portable(folder: Path) -> None:
    args: Mapping[str, Any] = read_args(folder)
    portable = {name: value for name, value in portable_args(args, context=None).items() if name != "diffusion_run"}
    write_json(folder / "args.json", portable)

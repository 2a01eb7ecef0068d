"""The folder of a saved pipeline: its layout, and the index that names every file with its checksum.

    model_index.json        format, sampling flags, and the SHA-256 of every other file
    args.json               configuration of the run, without paths
    denoiser/               averaged weights of all that trained: denoiser, statistics of the latents, embeddings
    autoencoder/            of compressed latents
    text_decoder/           of latents that a language model decodes: what trained beside it, and autoencoder/
    decoder_model/          that language model, its adapters merged: an ordinary Hugging Face folder
    language_model/         the model that reads texts into latents: an ordinary Hugging Face folder
    context_encoder/        of a run on pairs whose sources another model encodes
    tokenizer/              of token embeddings
    encoder/                configuration of a denoiser that is a Hugging Face encoder
    latent_classifier/      of a pipeline that was loaded with one
    evaluation.json         scores of the run, where it was evaluated
    README.md               the model card

Files are safetensors, JSON and text. Nothing outside the folder is read, and nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint_folder
from utils.checkpoint_folder import Checkpoint, DamagedError
from utils.errors import UserError, library_message, one_line_text
from utils.local_models import file_sha256
from utils.run_folder import write_text

INDEX = "model_index.json"
FORMAT = 1
CLASS = "TextDiffusionPipeline"
CARD, SCORES = "README.md", "evaluation.json"
WEIGHTS, LANGUAGE_MODEL, CONTEXT_ENCODER, CLASSIFIER, DECODER_MODEL = (
    "denoiser",
    "language_model",
    "context_encoder",
    "latent_classifier",
    "decoder_model",
)
SUFFIXES = (".safetensors", ".json", ".txt", ".model")  # of the files that are saved, downloaded and read
# Files that a hub or its client adds, texts for readers, what systems that show folders leave, and what programs write
# into a folder that is sampled or evaluated: never read when a pipeline is loaded, so they may change.
_NOT_READ = re.compile(
    r"[^/]*\.(md|png|svg|html)|LICENSE[^/]*|\.git/.*|\.gitattributes|\.cache/.*|[^/]*/\.gitattributes"
    r"|(.*/)?(\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini|\.ipynb_checkpoints/.*)"
    r"|(samples|evaluation|report-figures|scorer|classifier|tensorboard|wandb)/.*|wandb_run\.json"
)
_NAME = re.compile(r"(?:\w[\w.+-]*/){0,4}\w[\w.+-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_saved_pipeline(folder: Path) -> bool:
    """Whether a folder holds the index of a saved pipeline."""
    return (folder / INDEX).is_file()


def write_index(folder: Path, flags: Mapping[str, Any]) -> None:
    """Write the index of a folder whose other files are complete. flags: sampling flags that loading sets."""
    index = {
        "_class_name": CLASS,
        "format": FORMAT,
        "flags": dict(flags),
        "sha256": {name: file_sha256(folder / name) for name in sorted(_files(folder)) if name != INDEX},
    }
    write_text(folder / INDEX, _serialized({**index, "checksum": _checksum(index)}))


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a saved pipeline, after checking it and every file of the folder.

    UserError, in one line, if a file is missing, was changed or was added, or if the folder is of a newer release.
    """
    index = _parse(folder)
    known: dict[str, str] = index["sha256"]
    for name in _files(folder):
        if name != INDEX and name not in known:
            raise _damaged(folder, f"{name} was added since it was saved")
    for name, expected in known.items():
        try:
            found = file_sha256(folder / name) if (folder / name).is_file() else None
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read ({error.strerror})") from None
        if found is None:
            raise _damaged(folder, f"{name} is missing")
        if found != expected:
            raise _damaged(folder, f"{name} was changed since it was saved (its SHA-256 differs)")
    return index


def never_read(folder: Path) -> list[Path]:
    """The files and folders in a saved pipeline that loading never reads: a repository of Git, a license, samples."""
    return [path for path in folder.iterdir() if _NOT_READ.fullmatch(f"{path.name}/x" if path.is_dir() else path.name)]


def added_file(folder: Path) -> str | None:
    """The first file that loading may read and that was not saved with a pipeline; None without one, and where a
    damaged index does not tell.
    """
    try:
        known = {INDEX, *_parse(folder)["sha256"]}
    except UserError:
        return None
    return next((name for name in _files(folder) if name not in known), None)


def read_weights(folder: Path) -> Checkpoint | None:
    """The averaged weights of a saved pipeline ("model"); None for a run folder. UserError if they are damaged."""
    if not (folder / WEIGHTS / "state.json").is_file():
        return None
    try:
        return checkpoint_folder.read(folder / WEIGHTS)
    except DamagedError as error:
        raise _damaged(folder, f"{WEIGHTS}: {error}") from None


def _parse(folder: Path) -> dict[str, Any]:
    try:
        text = (folder / INDEX).read_text(encoding="utf-8")
        index = json.loads(text)
    except OSError as error:
        raise UserError(f"{folder / INDEX} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{INDEX} is no JSON ({library_message(error)[:80]})") from None
    if not isinstance(index, dict) or index.get("_class_name") != CLASS:
        found = index.get("_class_name") if isinstance(index, dict) else None
        of = f"of a {one_line_text(found)[:60]}" if isinstance(found, str) else "of another program"
        raise UserError(f"{folder} is not a saved pipeline of this project: its {INDEX} is {of}")
    version = index.get("format")
    if type(version) is int and version > FORMAT:
        raise UserError(
            f"{folder} was saved by a newer release (format {version}, this one reads {FORMAT}): update this one"
        )
    given = {key: value for key, value in index.items() if key != "checksum"}
    if index.get("checksum") != _checksum(given):
        raise _damaged(folder, f"{INDEX} was changed since it was saved (its checksum differs)")
    names, flags = index.get("sha256"), index.get("flags")
    if version != FORMAT or not isinstance(names, dict) or not isinstance(flags, dict):
        raise _damaged(folder, f"{INDEX} lacks format, flags or sha256")
    for name, expected in names.items():
        if not (_NAME.fullmatch(name) and Path(name).suffix in SUFFIXES):
            raise _damaged(folder, f"{INDEX} lists {one_line_text(name)[:80]}, which no saved pipeline holds")
        if not (isinstance(expected, str) and _SHA256.fullmatch(expected)):
            raise _damaged(folder, f"{INDEX} has no SHA-256 of {one_line_text(name)[:80]}")
    return index


def _files(folder: Path) -> Iterator[str]:
    """Names of the files below a folder that loading may read, relative to it."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and not _NOT_READ.fullmatch(name):
            yield name


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(f"{folder} is damaged: {one_line_text(what)}: save or download it again")


def _serialized(index: Mapping[str, Any]) -> str:
    return json.dumps(index, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(_serialized(index).encode()).hexdigest()

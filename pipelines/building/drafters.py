"""The drafter of an autoencoder: found in its folder or where --drafter says, refused where it is of another one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latent_models.compressed import CompressedSpace
from latent_models.drafting import Drafter
from latent_models.options import DrafterOptions
from latent_models.spaces import LatentSpace
from pipelines.building.models import best_or_newest, fill, options_of
from utils import checkpoints
from utils.errors import UserError
from utils.flag_files import read_args
from utils.runs import write_json
from utils.settings import Settings

DRAFTER_COPY = "drafter"  # below the folder of an autoencoder
SPACE = "space_fingerprint"  # in args.json: of what decides latents
WRITER = "writer_fingerprint"  # of all that reads and writes


def facts(space: CompressedSpace, max_seq_len: int) -> dict[str, Any]:
    """What args.json of a drafter says of its space."""
    return {SPACE: space.encoding_fingerprint(), WRITER: space.fingerprint(), "max_seq_len": max_seq_len}


def let_draft(settings: Settings, space: LatentSpace, autoencoder: Path | None) -> None:
    """Give a space its drafter: that of --drafter, else what the autoencoder's folder holds, if anything.

    autoencoder: None where the space has none. UserError where --drafter names one of another space; one that is found
    and does not belong to the space is left alone, with a note.
    """
    given = settings.drafter if "drafter" in settings.typed else None
    if not isinstance(space, CompressedSpace) or autoencoder is None:
        if given is not None:
            raise UserError(
                f"--drafter {given} drafts texts of an autoencoder's latents, and this run has other ones: leave it out"
            )
        return
    if settings.drafting == "off":
        return
    folder = drafter_folder(settings, autoencoder)
    if folder is None:
        return
    try:
        space.drafter = load_drafter(folder, space).to(next(space.autoencoder.parameters()).device)
    except UserError as error:
        if given is not None:
            raise
        print(f"note: texts are written token by token: {error}", file=sys.stderr)


def drafter_folder(settings: Settings, autoencoder: Path) -> Path | None:
    """The folder of --drafter, if it was typed, else the one below the autoencoder's, if it holds a drafter."""
    if "drafter" in settings.typed and settings.drafter is not None:
        return Path(settings.drafter)
    own = autoencoder / DRAFTER_COPY
    held = (own / "args.json").is_file() and ((own / "best").is_dir() or checkpoints.has_checkpoint(own))
    return own if held else None


def load_drafter(folder: Path, space: CompressedSpace) -> Drafter:
    """The frozen drafter of a run, on the CPU. UserError where it is none, or of other latents."""
    saved = read_args(folder)
    if SPACE not in saved or "drafter_depth" not in saved:
        raise UserError(
            f"--drafter {folder} is not the run of a drafter: train one with python -m pipelines.train_drafter"
        )
    if saved[SPACE] != space.encoding_fingerprint():
        raise UserError(
            f"the drafter in {folder} was trained for latents of another autoencoder: leave --drafter out, or train "
            "one for this one with python -m pipelines.train_drafter"
        )
    if saved[WRITER] != space.fingerprint():
        print(
            f"note: the drafter in {folder} was trained before the decoder was: texts are right all the same, and "
            "written sooner with a new one",
            file=sys.stderr,
        )
    drafter = new_drafter(space, saved)
    fill(drafter, best_or_newest(folder))
    return drafter.requires_grad_(False).eval()


def new_drafter(space: CompressedSpace, saved: Mapping[str, Any]) -> Drafter:
    """With fresh weights. saved: flags, and max_seq_len of the autoencoder."""
    return Drafter(space.language_model.dim, saved["max_seq_len"], options_of(DrafterOptions, saved))


def keep_drafter(drafter: Path, autoencoder: Path) -> None:
    """Copy a drafter beside the copy of its autoencoder, for use without training on."""
    checkpoint, target = best_or_newest(drafter), autoencoder / DRAFTER_COPY
    write_json(target / "args.json", read_args(drafter))
    facts = {k: v for k, v in checkpoint.facts.items() if k not in ("optimizer", "schedule")}
    checkpoints.save_best(target, {"model": checkpoint.tensors["model"]}, facts)

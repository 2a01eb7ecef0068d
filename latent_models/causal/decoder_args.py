"""The record of a text decoder's run, without torch: rules of command lines read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.cli.args_io import read_args
from utils.errors import UserError


def is_text_decoder(folder: Path | str) -> bool:
    """Whether a folder is the run of a causal decoder of latents (pipelines.train_text_decoder)."""
    return (Path(folder) / "args.json").is_file() and _is_one(read_args(Path(folder)))


def read_text_decoder_args(folder: Path) -> dict[str, Any]:
    """args.json of a run of pipelines.train_text_decoder. Raises UserError if the folder is of another kind of run."""
    saved = read_args(folder)
    if not _is_one(saved):
        raise UserError(
            f"--latent_model_path {folder} is not the run of a text decoder: train one with python -m "
            "pipelines.train_text_decoder"
        )
    return saved


def _is_one(saved: dict[str, Any]) -> bool:
    return bool(saved.get("decoder_model") and saved.get("decoder_mode"))  # a denoiser's run may name a decoder_model

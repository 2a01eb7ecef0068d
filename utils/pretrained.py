"""Loading a trained part from its run folder: finding it, its options, its weights, and a copy for inference.

A folder is complete: args.json holds the options, best/ or the newest checkpoint the weights. Every `from_pretrained`
of the project is built on these functions.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.errors import UserError
from utils.run_folder import resolve
from utils.sharding import shard_like

OptionsT = TypeVar("OptionsT")
PART_OF_FOLDER = "./"  # begins a recorded path that a saved pipeline holds


class WeightsRead(NamedTuple):
    """Which weights of a trained run were read: entries of a protocol, and of args.json of a run that uses them."""

    checkpoint: str | None  # best or newest; None: those of a saved pipeline
    step: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> WeightsRead:
        return cls("newest" if checkpoint.path.parent.name == "checkpoints" else "best", checkpoint.step)


def relative_path(path: str, folder: Path) -> str | None:
    """The path of a local folder relative to a run folder, so that both can move together; None for a hub id."""
    return os.path.relpath(path, folder) if Path(path).is_dir() else None


def locate_model(name: str, run: Path | None, recorded: str | None, flag: str = "--enc_dec_model") -> str:
    """Find the language model of a run folder: returns a folder or a hub id.

    name: the name that the run recorded. recorded: its path relative to the run folder, None for a hub id. flag: the
    flag that a UserError names if a recorded folder does not exist. A path that begins with "./" is of a saved
    pipeline, which holds the model: it comes before the name, which may be that of another folder here.
    """
    if run is None or recorded is None:
        return name
    if recorded.startswith(PART_OF_FOLDER):
        return os.path.normpath(run / recorded)
    if Path(name).is_dir():
        return name
    return str(resolve(recorded, run, flag))


def options_from(kind: type[OptionsT], saved: Mapping[str, Any]) -> OptionsT:
    """An options dataclass from the entries of an args.json that it declares; missing entries keep their defaults."""
    return kind(**{f.name: saved[f.name] for f in fields(kind) if f.name in saved})  # type: ignore[arg-type]


def has_weights(folder: Path) -> bool:
    """Whether a run folder holds a best checkpoint or any other."""
    return checkpoints.has_best(folder) or checkpoints.has_checkpoint(folder)


def best_or_newest(folder: Path) -> Checkpoint:
    """The best checkpoint of a run folder, else the newest. Raises UserError if it holds none."""
    return checkpoints.load_best(folder) if checkpoints.has_best(folder) else checkpoints.load(folder)


def read_checkpoint(folder: Path, best: bool, required: bool = False) -> Checkpoint:
    """best/ of a run folder, or its newest checkpoint if there is no best one. required: UserError instead."""
    if best and (required or checkpoints.has_best(folder)):
        return checkpoints.load_best(folder)
    return checkpoints.load(folder)


@torch.no_grad()
def load_into(module: nn.Module, checkpoint: Checkpoint, part: str = "model") -> None:
    """Copy a part of a checkpoint ("model" or "ema") into a module, in place.

    A language model that the checkpoint does not hold keeps its weights. Raises UserError if names or shapes
    differ.
    """
    present, saved = module.state_dict(keep_vars=True), checkpoint.tensors[part]
    for name, x in saved.items():
        if name not in present or present[name].shape != x.shape:
            found = "no such part" if name not in present else f"shape {tuple(present[name].shape)}"
            raise UserError(
                f"{checkpoint.path} holds {name} of shape {tuple(x.shape)}, but this run builds {found}: "
                "check the flags against its args.json"
            )
        present[name].copy_(shard_like(x, present[name]))
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and name not in saved and not name.startswith("language_model."):
            raise UserError(
                f"{checkpoint.path} lacks {name}, which this run builds: check the flags against its args.json"
            )


def copy_weights(source: Path, target: Path, parts: Collection[str] | None = None) -> None:
    """Copy the best (else newest) weights of a run folder into best/ of another, without the state of the optimizer.

    parts: names of the parts of the checkpoint to copy; None: all but the optimizer.
    """
    checkpoint = best_or_newest(source)
    tensors = {
        name: x for name, x in checkpoint.tensors.items() if (name != "optimizer" if parts is None else name in parts)
    }
    metadata = {key: value for key, value in checkpoint.metadata.items() if key not in ("optimizer", "schedule")}
    checkpoints.save_best(target, tensors, metadata)

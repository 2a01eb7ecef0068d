"""What every conversion of a published run shares: reading its checkpoint, and writing a run folder of this project."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset_utils import registry
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import count_lengths
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.tokens import tokenize_split
from utils import checkpoints
from utils.cli.args_io import saved_flags, write_args
from utils.cli.flags import shown
from utils.cli.settings import Program, Settings
from utils.errors import UserError, refuse_unreadable
from utils.pretrained import relative_path

NEWEST, BEST = "model.pt", "best_model.pt"
Pickled = Mapping[str, Any]  # as torch.save wrote it


def read_pickled(path: Path) -> Pickled:
    """Load a file of tensors, numbers and containers. UserError for one that holds anything else: no code runs."""
    with refuse_unreadable(str(path), "copy it again from where it was written"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other versions of pickle; what is not read raises an error
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no table of weights: it is not a checkpoint of the published code")
    return found


def read_state(path: Path) -> dict[str, Tensor]:
    """Load a file that holds weights by name and nothing else."""
    return only_tensors(read_pickled(path), path)


def only_tensors(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    odd = [name for name, x in state.items() if not (isinstance(name, str) and isinstance(x, Tensor))]
    if odd:
        raise UserError(f"{path} holds {shown(odd[0])}, which is no tensor: the published code did not write it")
    return dict(state)


def make_settings(program: Program, saved: Mapping[str, Any], folder: Path, **changes: Any) -> Settings:
    """Settings of this project from the flags of args.json. changes: flags with another name or value here."""
    settings = Settings(program)
    for name, value in (saved_flags(program, saved, folder) | changes).items():
        settings.set(name, value, source="saved")
    for rule in program.rules:
        rule(settings)
    return settings


def check_same_weights(model: nn.Module, copy: Mapping[str, Tensor], name: str, file: Path, flag: str) -> None:
    """UserError if a frozen model differs from its copy in a checkpoint.

    copy: weights of the copy, under the names of the model. flag: the flag that names the folder of the model.
    """
    own = model.state_dict()
    for key, x in copy.items():
        if key in own and (own[key].shape != x.shape or not torch.allclose(own[key], x.to(own[key]), atol=1e-6)):
            raise UserError(
                f"{name} is not the model in {file}: {key} differs; name the folder of that model with {flag}"
            )


def training_lengths(settings: Settings[DiffusionConfig], space: LatentSpace) -> Tensor:
    """Counts of the lengths of training texts, from which samples of encoder states draw their lengths."""
    missing = registry.missing_files_message(settings.config.data)
    if missing:
        raise UserError(
            f"samples of encoder states draw their lengths from the corpus: name its folder with --data_dir; {missing}"
        )
    corpus = registry.load(settings.config.data)
    tokens = tokenize_split(corpus.train, space.language_model, settings.config.language_model.max_seq_len)  # type: ignore[arg-type]
    return count_lengths(tokens.lengths, space.length)


def save(
    target: Path,
    file: str,
    tensors: dict[str, dict[str, Tensor]],
    checkpoint: Pickled,
    metadata: dict[str, Any],
    settings: Settings[DiffusionConfig],
) -> None:
    known = {"step": int(checkpoint.get("step", 0)), "best": {}, "seed": settings.config.loop.random_seed, **metadata}
    save = checkpoints.save if file == NEWEST else checkpoints.save_best
    save(target, tensors, known)


def write_run_args(
    settings: Settings[DiffusionConfig], source: Path, target: Path, model: LanguageModel | None, **metadata: Any
) -> None:
    write_args(
        settings,
        target,
        converted_from=str(source),
        **({} if model is None else _of_language_model(model, target)),
        **metadata,
    )


def _of_language_model(model: LanguageModel, target: Path) -> dict[str, Any]:
    return {"enc_dec_model_relative": relative_path(model.name, target), "language": model.language}

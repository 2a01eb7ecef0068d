"""Load a trained diffusion run: its settings, and its components with the averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.programs import DIFFUSION
from pipelines.components import Components, build_components, load_trained_weights
from pipelines.run_context import check_same_program
from utils import distributed
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.errors import UserError

FlagValue = str | int | float | bool


@dataclass
class LoadedRun:
    """A trained run, ready to sample from."""

    settings: Settings[DiffusionConfig]
    components: Components
    device: torch.device
    class_names: list[str]


def load_run(folder: str | Path, *, device: str = "auto", argv: Sequence[str] = (), **flags: FlagValue) -> LoadedRun:
    """Load a run folder; the corpus is not needed.

    flags: flags that an evaluation may set, such as sampler="dpmpp" or sampling_timesteps=20. argv: flags in the form
    of a command line. Raises UserError if the folder is not the run of a denoiser, or a flag is fixed by training.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise UserError(f"{folder!r} is not a run folder: give the path of one as a string or a Path")
    arguments = [*argv, *(word for name, value in flags.items() for word in _as_arguments(name, value))]
    settings = parse(DIFFUSION, ["--eval", "--resume_dir", str(folder), f"--device={device}", *arguments])
    check_same_program(settings)
    torch_device, class_names = distributed.pick_device(device), list(settings.checkpoint_args.get("class_names", ()))
    source_tokens = (settings.config.context.max_source_len or 1) if settings.checkpoint_args.get("seq2seq") else 0
    components = build_components(settings, Path(folder), torch_device, len(class_names), source_tokens)
    load_trained_weights(
        components.model, Path(folder), best=source_tokens > 0 and not settings.config.pairs.newest_checkpoint
    )
    return LoadedRun(settings, components, torch_device, class_names)


def _as_arguments(name: str, value: FlagValue) -> list[str]:
    flag = DIFFUSION.flags.get(name)
    return ["--config", f"{name}={value}"] if flag is not None and flag.config_only else [f"--{name}={value}"]

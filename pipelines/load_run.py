"""Load a trained diffusion run, or a saved pipeline: its settings, and its components with the averaged weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.decoded import DecodedSpace
from pipelines.builders.models import autoencoder_folder
from pipelines.cli.configs import DiffusionConfig
from pipelines.cli.programs import CAUSAL_LM, DIFFUSION, SEQ2SEQ
from pipelines.components import Components, build_components, load_trained_weights
from pipelines.pretrained.arguments import check_decoder_inside, check_inside, flags_to_set
from pipelines.pretrained.folder import is_saved_pipeline, read_index
from pipelines.run_context import check_same_program
from utils import distributed
from utils.cli.args_io import read_args
from utils.cli.parse import parse
from utils.cli.settings import Settings
from utils.cli.words import flag_names
from utils.ema import ema_tensors
from utils.errors import UserError
from utils.kernels import set_kernels
from utils.options import KernelOptions
from utils.precision import resolve_precision
from utils.pretrained import WeightsRead

FlagValue = str | int | float | bool
_KERNEL_FLAGS = frozenset(option.name for option in fields(KernelOptions))
_BASELINES = (CAUSAL_LM.name, SEQ2SEQ.name)


@dataclass
class LoadedRun:
    """A trained run, ready to sample from."""

    settings: Settings[DiffusionConfig]
    components: Components
    device: torch.device
    class_names: list[str]
    folder: Path
    weights: WeightsRead
    weight_names: tuple[str, ...] = ()  # names of the weights that the run trained; the others are of frozen models
    autoencoder_args: Mapping[str, Any] = field(default_factory=dict)  # args.json of the autoencoder, if there is one

    @property
    def step(self) -> int:
        """The step of the weights."""
        return self.weights.step

    @property
    def has_null_class(self) -> bool:
        """Whether the network was trained without a class, too."""
        return not self.class_names or self.settings.config.process.class_unconditional_prob > 0


def load_run(folder: str | Path, *, device: str = "auto", argv: Sequence[str] = (), **flags: FlagValue) -> LoadedRun:
    """Load a run folder, or the folder of a saved pipeline, every file of which is checked; the corpus is not needed.

    Sets the kernels of this process, unless it has set them, and the precision that the device chooses.

    flags: flags that an evaluation may set, such as sampler="dpmpp" or sampling_timesteps=20. argv: flags in the form
    of a command line. Raises UserError if the folder is not the run of a denoiser, or a flag is fixed by training.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise UserError(f"{folder!r} is not a run folder: give the path of one as a string or a Path")
    folder = Path(folder)
    arguments = [*argv, *_as_arguments(flags)]
    if is_saved_pipeline(folder):
        given = flag_names(arguments)
        arguments = [*_as_arguments(flags_to_set(read_index(folder)["flags"], given, folder)), *arguments]
        check_inside(read_args(folder), folder)
        check_decoder_inside(folder)
    else:
        _check_no_baseline(folder)
    settings = parse(DIFFUSION, ["--eval", "--resume_dir", str(folder), f"--device={device}", *arguments])
    check_same_program(settings)
    torch_device = distributed.pick_device(device)
    resolve_precision(settings, torch_device)
    class_names = list(settings.checkpoint_args.get("class_names", ()))
    source_tokens = (settings.config.context.max_source_len or 1) if settings.checkpoint_args.get("seq2seq") else 0
    components = build_components(settings, folder, torch_device, len(class_names), source_tokens)
    names = tuple(ema_tensors(components.model))
    weights = load_trained_weights(components.model, folder, settings, pairs=source_tokens > 0)
    has_own = isinstance(components.space.space, CompressedSpace | DecodedSpace)
    autoencoder_args = read_args(autoencoder_folder(settings, folder)) if has_own else {}
    typed = flag_names(argv) | flags.keys()
    set_kernels(settings.config.kernels, torch_device, unless_set=not _KERNEL_FLAGS & typed)  # of the whole process
    return LoadedRun(settings, components, torch_device, class_names, folder, weights, names, autoencoder_args)


def _check_no_baseline(folder: Path) -> None:
    """UserError for the run of a baseline, with the command that samples from it."""
    program = read_args(folder).get("program")
    if program in _BASELINES:
        raise UserError(
            f"{folder} is a run of {program}, which has no denoiser: {program} --eval --resume_dir {folder} "
            "--num_samples 10 samples texts from it, into its folder evaluation"
        )


def _as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """Flags by name as words of a command line."""
    return [word for name, value in flags.items() for word in _as_argument(name, value)]


def _as_argument(name: str, value: FlagValue | None) -> list[str]:
    flag = DIFFUSION.flags.get(name)
    text = "none" if value is None else value
    return ["--config", f"{name}={text}"] if flag is not None and flag.config_only else [f"--{name}={text}"]

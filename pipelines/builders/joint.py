"""The parts of a run of --joint_run: an autoencoder that trains with the denoiser, its first weights, and its copy."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor, nn

from latent_models.spaces.base import LatentSpace
from latent_models.spaces.compressed import CompressedSpace
from pipelines.builders.models import ADAPTED_COPY, AUTOENCODER_COPY, adapted_copy
from pipelines.cli.configs import DiffusionConfig
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.cli.args_io import read_args
from utils.cli.settings import Settings
from utils.errors import UserError
from utils.pretrained import best_or_newest
from utils.state import chosen_ema, trainable_state

PART = "space."  # begins the names of the autoencoder's weights in a checkpoint of such a run


def open_for_training(settings: Settings[DiffusionConfig], space: LatentSpace, run: Path) -> None:
    """Of a run of --joint_run, let the autoencoder train with the denoiser: a checkpoint then holds both.

    run: the run folder. A trained run that is used with another --latent_model_path, or with its adapted decoder, keeps
    that one as it is. Raises UserError for latents that have no autoencoder.
    """
    options, is_trained = settings.config.joint, bool(settings.checkpoint_args)
    if options.joint_run is None or (is_trained and "latent_model_path" in settings.explicit):
        return
    if is_trained and adapted_copy(settings, run) is not None:
        return
    if not isinstance(space, CompressedSpace):
        raise UserError(
            f"--joint_run {options.joint_run} trains an autoencoder, and the latents of this run have none: name a run "
            "of compressed latents"
        )
    space.learned_with_denoiser = True
    space.autoencoder.requires_grad_(True)
    space.heads.requires_grad_(True)
    if space.heads.alignment is not None:  # its features are not at hand here
        space.heads.alignment.requires_grad_(False)


LEFT_OUT = ("alignment_weight", "state_mask_prob", "state_noise", "latent_mask_prob", "token_dropout")


def left_out(autoencoder: Path) -> str | None:
    """A line with the flags of an autoencoder's own training that joint training does without; None for none.

    Features to align with are not at hand, and what changes the states of the encoder would change the denoiser's data.
    """
    saved = read_args(autoencoder)
    flags = [f"--{name} {saved[name]:g}" for name in LEFT_OUT if saved.get(name)]
    return f"note: joint training goes on without {', '.join(flags)} of the autoencoder" if flags else None


def joint_weights(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The first weights of a new run: averaged weights of --joint_run, and the autoencoder as it was loaded.

    checkpoint: of --joint_run.
    """
    part = chosen_ema(checkpoint)
    if part not in checkpoint.tensors:
        raise UserError(f"{checkpoint.path} holds no averaged weights: name the run folder of a denoiser")
    own = {name: x for name, x in trainable_state(model).items() if name.startswith(PART)}
    others = {name: x for name, x in checkpoint.tensors[part].items() if not name.startswith(PART)}
    return Checkpoint({"model": {**others, **own}}, {"step": checkpoint.step}, checkpoint.path)


def without_autoencoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a run without those of its autoencoder, to be used with another one of the same latents."""
    return {name: x for name, x in tensors.items() if not name.startswith(PART)}


def write_autoencoder_copy(run: Path, checkpoint: Checkpoint) -> None:
    """Write the averaged weights of a checkpoint into the run's copy of its autoencoder, which other programs read."""
    folder = run / AUTOENCODER_COPY
    before, averages = best_or_newest(folder), checkpoint.tensors[chosen_ema(checkpoint)]
    if before.step != checkpoint.step:  # an adapted decoder is of the latents as they were
        shutil.rmtree(run / ADAPTED_COPY, ignore_errors=True)
    own = {name.removeprefix(PART): x for name, x in averages.items() if name.startswith(PART)}
    metadata = {key: x for key, x in before.metadata.items() if key not in ("optimizer", "schedule")}
    checkpoints.save_best(folder, {"model": {**before.tensors["model"], **own}}, {**metadata, "step": checkpoint.step})

"""The parts of a diffusion run, fresh or trained: space, network and process, and the generator that they make."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.normalisation import Normalised
from model.options import DenoiserOptions
from pipelines.build import DiffusionModel, fill, load_space
from pipelines.generate import TextGenerator
from pipelines.process import Process, make_process
from utils import checkpoints
from utils.errors import UserError
from utils.seeding import derive
from utils.settings import Settings
from utils.speed import compile_network


@dataclass
class Parts:
    """What training and sampling of a denoiser share."""

    space: Normalised
    model: DiffusionModel
    process: Process


def make_parts(settings: Settings, run: Path, device: torch.device, num_classes: int = 0) -> Parts:
    """Space, network with fresh weights, and process of the flags, on the device.

    run: folder of the run, where it keeps its autoencoder. num_classes: of the corpus, for --class_conditional.
    """
    options = settings.build(DenoiserOptions)
    space = load_space(settings, run, device)
    if settings.normalize_latent and getattr(getattr(space, "autoencoder", None), "l2_normalize", False):
        raise UserError(
            "--normalize_latent and an autoencoder with --l2_normalize_latents exclude each other: its latents "
            "already have a norm; leave --normalize_latent out"
        )
    torch.manual_seed(derive(settings.random_seed, "weights"))
    model = DiffusionModel(space, options, settings.max_seq_len, num_classes if options.class_conditional else 0)
    model.to(device)
    compile_network(model.denoiser, settings.compile, device)
    process = make_process(
        settings.build(ProcessOptions),
        settings.build(SamplingOptions),
        options.denoiser_variant,
        settings.saved.get("scale"),
    )
    return Parts(model.normalised(space), model, process)


def fill_from_run(model: DiffusionModel, folder: Path) -> None:
    """The averaged weights of a run's newest checkpoint."""
    checkpoint = checkpoints.load(folder)
    if "ema" not in checkpoint.tensors:
        raise UserError(f"{checkpoint.path} holds no averaged weights: it is not the run of a denoiser")
    fill(model, checkpoint, "ema")


def make_generator(
    settings: Settings, parts: Parts, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
) -> TextGenerator:
    refuse_guidance_without_null(settings)
    return TextGenerator(
        parts.space,
        parts.model.denoiser,
        parts.process,
        steps=settings.sampling_timesteps,
        block=max(settings.eval_batch_size, settings.train_batch_size),
        device=device,
        autocast=autocast,
        max_length=settings.max_seq_len,
        guidance=settings.cls_free_guidance,
    )


def refuse_guidance_without_null(settings: Settings) -> None:
    """Guidance mixes what a network says with and without its condition, so it must have been trained on both."""
    weight = settings.cls_free_guidance
    if weight == 1:
        return
    if not settings.class_conditional:
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a condition to follow: add --class_conditional, or leave it out"
        )
    if settings.class_unconditional_prob == 0:
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a network that knows the null condition, and this one trains with "
            "--class_unconditional_prob 0: leave guidance out, or train with a share above 0"
        )

"""The parts of a diffusion run, fresh or trained: space, network and process, and the generator that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import NormalizedSpace
from model.options import DenoiserOptions, EncoderDenoiserOptions
from pipelines.builders.diffusion_process import DiffusionProcess, make_process
from pipelines.builders.draft_models import attach_draft_model
from pipelines.builders.embeddings import load_embeddings
from pipelines.builders.models import DiffusionModel, autoencoder_folder, encoder_options, load_space
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.context_encoder import ContextEncoder, load_context_encoder
from pipelines.run_context import is_eval_run
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.hooks import RemaskHook, RoundingHook, load_classifier_control
from pipelines.sampling.inputs import ContextSources, PackedSources, Sources
from pipelines.sampling.sampler_call import SamplerHook
from utils import checkpoints
from utils.cli.settings import Settings
from utils.compile import compile_network
from utils.distributed import DistContext
from utils.errors import UserError
from utils.pretrained import best_or_newest, load_into
from utils.seeding import derive_seed


@dataclass
class Components:
    """What training and sampling of a denoiser share."""

    space: NormalizedSpace
    model: DiffusionModel
    process: DiffusionProcess
    context: ContextEncoder | None = None  # of a run with sources, but for embeddings, which hold the source itself
    seq2seq: bool = False


def build_components(
    settings: Settings[DiffusionConfig],
    run: Path,
    device: torch.device,
    num_classes: int = 0,
    source_tokens: int = 0,
    texts: Sequence[str] = (),
) -> Components:
    """Space, network with fresh weights, and process of the flags, on the device.

    run: folder of the run, where it keeps its autoencoder. num_classes: of the corpus, for --class_conditional.
    source_tokens: longest source where --max_source_len does not say; 0: the run has no sources. texts: of a new run's
    corpus, for a tokenizer that is trained on them.
    """
    options = settings.config.denoiser
    process = make_process(
        settings.config.process,
        settings.config.sampling,
        options.denoiser_variant,
        settings.checkpoint_args.get("scale"),
        student=settings.config.distillation.distill_run is not None,
    )
    context = None
    if settings.config.latents.latent_space == "embeddings":
        if source_tokens and settings.sources["padding"] == "default":
            settings.set("padding", "generated")  # as published: nobody knows how long a target is
        space: LatentSpace = load_embeddings(settings, run, process.train_schedule, texts, device)
    else:
        space = load_space(settings, run, device, source_tokens > 0)
        context = load_context_encoder(settings, run, space, device, source_tokens) if source_tokens else None
    attach_draft_model(
        settings, space, autoencoder_folder(settings, run) if settings.config.latents.latent_model_path else None
    )
    check_guidance(settings, context is not None)
    if settings.config.latents.normalize_latent and getattr(getattr(space, "autoencoder", None), "l2_normalize", False):
        raise UserError(
            "--normalize_latent and an autoencoder with --l2_normalize_latents exclude each other: its latents "
            "already have a norm; leave --normalize_latent out"
        )
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    classes = num_classes if options.class_conditional else 0
    encoder, absorbing = encoder_options(settings, run), settings.config.absorbing.learned_mean_embed
    packed = space.length if source_tokens and context is None else 0
    model = new_model(
        space, options, settings.config.language_model.max_seq_len, classes, context, encoder, absorbing, packed
    )
    model.to(device)
    compile_network(model.denoiser, settings.config.compilation.compile, device)
    return Components(model.normalize(space), model, process, context, source_tokens > 0)


def new_model(
    space: LatentSpace,
    options: DenoiserOptions,
    max_seq_len: int,
    num_classes: int,
    context: ContextEncoder | None,
    encoder: EncoderDenoiserOptions,
    absorbing: bool = False,
    packed: int = 0,
) -> DiffusionModel:
    """The network and what trains beside it. num_classes: 0 for none. context: what reads sources, if there are any.

    packed: longest source in tokens, where sources stand before their texts instead.
    """
    if context is None:
        return DiffusionModel(
            space, options, max_seq_len, num_classes, encoder=encoder, absorbing=absorbing, source_length=packed
        )
    trained, length = context.states if context.trained else None, context.states.length
    return DiffusionModel(space, options, max_seq_len, num_classes, context.dim, trained, encoder, absorbing, length)


def named_components(parts: Components) -> dict[str, nn.Module]:
    """What a run is made of, to show. An encoder of the sources stands by itself where it is not the latents' own."""
    context = parts.context
    shown: dict[str, nn.Module] = {"latent space": parts.space.space}
    if context is not None:
        name = "context encoder" + (" (shared)" if context.shared else "")
        shown[name] = context.model.model.get_encoder()
    if parts.space.learned_with_denoiser or (context is not None and context.trained):
        return shown | {"denoiser": parts.model.denoiser}
    return shown | {"denoiser": parts.model}


def load_trained_weights(model: DiffusionModel, folder: Path, *, best: bool = False) -> None:
    """The averaged weights of a run's newest checkpoint; best: of its best one, where one was kept."""
    checkpoint = best_or_newest(folder) if best else checkpoints.load(folder)
    if "ema" not in checkpoint.tensors:
        raise UserError(f"{checkpoint.path} holds no averaged weights: it is not the run of a denoiser")
    load_into(model, checkpoint, "ema")


def make_generator(
    settings: Settings[DiffusionConfig],
    parts: Components,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    dist: DistContext | None = None,
) -> TextGenerator:
    """What writes texts with these parts. ranks: processes that share the work.

    In blocks of --train_batch_size at least, as published, unless an evaluation asks for smaller ones.
    """
    least = (
        1 if is_eval_run(settings) and "eval_batch_size" in settings.explicit else settings.config.loop.train_batch_size
    )
    return TextGenerator(
        parts.space,
        parts.model.denoiser,
        parts.process,
        steps=settings.config.sampling.sampling_timesteps,
        batch_size=max(settings.config.evaluation.eval_batch_size, least),
        device=device,
        autocast=autocast,
        max_length=settings.config.language_model.max_seq_len,
        guidance=settings.config.sampling.cls_free_guidance,
        dist=dist,
        absorbing=parts.model.absorbing,
        hooks=make_hooks(settings, parts, device),
    )


def make_sources(
    settings: Settings[DiffusionConfig],
    parts: Components,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Sources | None:
    """How sources reach the sampler; None for a run without."""
    if not parts.seq2seq:
        return None
    if parts.context is None:
        return PackedSources(parts.space, device, settings.config.packing.truncate_sources)
    return ContextSources(parts.context, device, autocast)


def make_hooks(settings: Settings[DiffusionConfig], parts: Components, device: torch.device) -> list[SamplerHook]:
    """What the flags add to each walk, the innermost first."""
    hooks: list[SamplerHook] = []
    control, rounding = settings.config.control, settings.config.clamp
    if control.latent_classifier is not None or control.target_label is not None:
        hooks.append(load_classifier_control(control, parts.space, parts.process, device))
    if rounding.clamp or rounding.rejection_rate:
        hooks.append(RoundingHook(rounding, parts.space))
    if parts.model.absorbing is not None and settings.config.absorbing.denoise:
        hooks.append(RemaskHook(parts.model.absorbing, settings.config.absorbing.denoise_rate))
    return hooks


def check_guidance(settings: Settings[DiffusionConfig], sources: bool) -> None:
    """Guidance mixes what a network says with and without its condition, so it must have been trained on both."""
    weight = settings.config.sampling.cls_free_guidance
    if weight == 1:
        return
    shares = {
        "class_unconditional_prob": settings.config.denoiser.class_conditional,
        "seq2seq_unconditional_prob": sources,
    }
    if not any(shares.values()):
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a condition to follow: add --class_conditional, name a corpus with "
            "sources, or leave it out"
        )
    never = next((flag for flag, there in shares.items() if there and settings.get(flag) == 0), None)
    if never:
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a network that knows the null condition, and this one trains with "
            f"--{never} 0: leave guidance out, or train with a share above 0"
        )

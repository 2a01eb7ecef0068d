"""The components of a diffusion run, new or trained: space, denoiser and process; and the generator built from them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.schedules import scale_for_dimension
from latent_models.generation.decoding import decoding_settings
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import NormalizedSpace
from model.linear_denoiser import LinearDenoiser
from model.options import DenoiserOptions
from pipelines.best_checkpoint import checkpoint_of
from pipelines.builders.diffusion_process import DiffusionProcess, make_process
from pipelines.builders.draft_models import attach_draft_model
from pipelines.builders.joint import open_for_training, without_autoencoder
from pipelines.builders.linear_denoisers import make_linear_denoiser
from pipelines.builders.models import DiffusionModel, SpaceInputs, autoencoder_folder, own_denoiser_options
from pipelines.builders.spaces import SPACES
from pipelines.builders.text_decoders import decoded_space_of
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.context_encoder import ContextEncoder, load_context_encoder
from pipelines.pretrained.folder import read_weights
from pipelines.run_context import is_eval_run
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.hooks import RemaskHook, RoundingHook, load_classifier_control
from pipelines.sampling.inputs import ContextSources, PackedSources, Sources
from pipelines.sampling.sampler_call import SamplerHook
from utils import checkpoints
from utils.checkpoints import Checkpoint
from utils.cli.settings import Settings
from utils.compile import compile_network
from utils.distributed import DistContext
from utils.errors import UserError
from utils.pretrained import WeightsRead, load_into
from utils.seeding import derive_seed
from utils.state import chosen_ema


@dataclass
class Components:
    """The components that training and sampling of a denoiser share."""

    space: NormalizedSpace
    model: DiffusionModel
    process: DiffusionProcess
    context: ContextEncoder | None = None  # encodes source texts; None without them, and where the space packs them
    seq2seq: bool = False


def build_components(
    settings: Settings[DiffusionConfig],
    run: Path,
    device: torch.device,
    num_classes: int = 0,
    source_tokens: int = 0,
    texts: Sequence[str] = (),
) -> Components:
    """Space, denoiser with fresh weights, and process of the flags.

    run: the run folder; after the start of the run it holds a copy of the autoencoder. device: meta for a dry run, in
    which everything has shapes but no weights. num_classes: number of classes of the corpus, for --class_conditional.
    source_tokens: tokens of the longest source if --max_source_len is not given; 0: the run has no sources. texts:
    training texts of a new run, for a tokenizer.
    """
    options, meta = settings.config.denoiser, device.type == "meta"
    process = process_of(settings)
    inputs = SpaceInputs(settings, run, device, process.train_schedule, source_tokens > 0, texts)
    assert settings.config.latents.latent_space is not None  # a rule of the command line sets it
    space = SPACES[settings.config.latents.latent_space].build(inputs)
    open_for_training(settings, space, run)
    decoded = decoded_space_of(space)
    if decoded is not None and decoded.source_length and not source_tokens:
        raise UserError(
            "the decoder of --latent_model_path reads sources (--source_prompt), and this run has none: name a corpus "
            "of pairs, without --ignore_sources, or train a decoder without that flag"
        )
    if set_scale(settings, space.length * space.dim):
        process = process_of(settings)
    context = None
    if source_tokens and settings.config.latents.latent_space != "embeddings":
        where = torch.device("cpu") if meta else device
        context = load_context_encoder(settings, run, space, where, source_tokens, empty=meta)
    if not meta:
        autoencoder = autoencoder_folder(settings, run) if settings.config.latents.latent_model_path else None
        attach_draft_model(settings, space, autoencoder)
    check_guidance(settings, context is not None, packed=source_tokens > 0 and context is None)
    if settings.config.latents.normalize_latent and getattr(getattr(space, "autoencoder", None), "l2_normalize", False):
        raise UserError(
            "--normalize_latent cannot be combined with an autoencoder of --l2_normalize_latents, whose latents are "
            "normalized already: leave --normalize_latent out"
        )
    torch.manual_seed(derive_seed(settings.config.loop.random_seed, "weights"))
    with device if meta else nullcontext():
        model = new_model(
            space,
            options,
            settings.config.language_model.max_seq_len,
            num_classes if options.class_conditional else 0,
            context,
            own_denoiser_options(settings, None if meta else run),
            settings.config.absorbing.learned_mean_embed,
            space.length if source_tokens and context is None else 0,
            make_linear_denoiser(space, process) if options.linear_denoiser else None,
        )
    if not meta:
        model.to(device)
        steps = 0 if is_eval_run(settings) else settings.config.loop.num_train_steps
        compile_network(model.denoiser, settings.config.compilation.compile, device, steps=steps)
    return Components(model.normalize(space), model, process, context, source_tokens > 0)


def process_of(settings: Settings[DiffusionConfig]) -> DiffusionProcess:
    """The process of the flags."""
    return make_process(
        settings.config.process,
        settings.config.sampling,
        settings.config.denoiser.denoiser_variant,
        settings.checkpoint_args.get("scale"),
        student=settings.config.distillation.distill_run is not None,
    )


def set_scale(settings: Settings[DiffusionConfig], dimension: int) -> bool:
    """Set --scale as --scale_by_dimension asks, for latents of so many numbers; whether it did.

    args.json records the number, so that a resumed run, an evaluation or a student has it without this.
    """
    if not settings.config.process.scale_by_dimension or settings.checkpoint_args:
        return False
    if "scale" in settings.explicit:
        raise UserError("--scale and --scale_by_dimension both choose the scale of the schedule: give one")
    settings.set("scale", scale_for_dimension(dimension))
    print(f"note: --scale {settings.config.process.scale:.3g}, for latents of {dimension} numbers", file=sys.stderr)
    return True


def new_model(
    space: LatentSpace,
    options: DenoiserOptions,
    max_seq_len: int,
    num_classes: int,
    context: ContextEncoder | None,
    own_options: Any,
    absorbing: bool = False,
    max_source_len: int = 0,
    linear: LinearDenoiser | None = None,
) -> DiffusionModel:
    """The denoiser, and the modules that train with it, with fresh weights.

    num_classes: 0 without classes. context: encoder of source texts; None without sources. own_options: options of this
    kind of denoiser, see model.make_denoiser. max_source_len: tokens of the longest source where the space packs a
    source before its text; 0 otherwise. linear: see DiffusionModel.
    """
    if context is None:
        return DiffusionModel(
            space,
            options,
            max_seq_len,
            num_classes,
            own_options=own_options,
            absorbing=absorbing,
            source_length=max_source_len,
            linear=linear,
        )
    trained, length = context.states if context.trained else None, context.states.length
    return DiffusionModel(
        space, options, max_seq_len, num_classes, context.dim, trained, own_options, absorbing, length, linear
    )


def named_components(components: Components) -> dict[str, nn.Module]:
    """The modules of a run by name, for the table of parameters. A context encoder is listed apart from the space."""
    context = components.context
    shown: dict[str, nn.Module] = {"latent space": components.space.space}
    if context is not None:
        name = "context encoder" + (" (shared)" if context.shared else "")
        shown[name] = context.model.encoder
    if components.space.learned_with_denoiser or (context is not None and context.trained):
        return shown | {"denoiser": components.model.denoiser}
    return shown | {"denoiser": components.model}


def load_trained_weights(
    model: DiffusionModel, folder: Path, settings: Settings[DiffusionConfig], *, pairs: bool = False
) -> WeightsRead:
    """Load the averaged weights of a run, from the checkpoint of --checkpoint, or of a saved pipeline.

    pairs: whether the run has sources; its best checkpoint is then the default. Returns which weights these are.
    """
    if (saved := read_weights(folder)) is not None:
        if settings.config.best.checkpoint is not None:
            raise UserError(f"{folder} is a saved pipeline, which holds one set of weights: leave --checkpoint out")
        load_into(model, _for_this_space(model, saved))
        return WeightsRead(None, saved.step)
    checkpoint = checkpoint_of(folder, settings, default=pairs)
    if "ema" not in checkpoint.tensors:
        raise UserError(f"{checkpoint.path} holds no averaged weights: name the run folder of a denoiser")
    load_into(model, _for_this_space(model, checkpoint, chosen_ema(checkpoint)))
    read = WeightsRead.of(checkpoint)
    if settings.config.best.checkpoint is None and read.checkpoint == "best":
        newest = checkpoints.newest(folder)
        if newest is not None and newest["step"] > read.step:
            print(
                f"note: {folder}: the best checkpoint is read, of step {read.step}; the newest, of step "
                f"{newest['step']}, by --checkpoint newest",
                file=sys.stderr,
            )
    return read


def _for_this_space(model: DiffusionModel, checkpoint: Checkpoint, part: str = "model") -> Checkpoint:
    """A part of a checkpoint as "model"; without the weights of an autoencoder that trained with the denoiser, where
    another one takes its place."""
    tensors = checkpoint.tensors[part]
    tensors = tensors if model.space is not None else without_autoencoder(tensors)
    return Checkpoint({"model": tensors}, checkpoint.metadata, checkpoint.path)


def make_generator(
    settings: Settings[DiffusionConfig],
    components: Components,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    dist: DistContext | None = None,
    *,
    whole_blocks: bool = True,
) -> TextGenerator:
    """The generator that samples texts with these components. dist: ranks that share the batches.

    A batch has --eval_batch_size texts, but at least --train_batch_size, as published. An explicit --eval_batch_size of
    an evaluation may be smaller, and changes no random number: these are drawn in blocks of the batches of training.
    whole_blocks: see TextGenerator.
    """
    asked, smallest = settings.config.evaluation.eval_batch_size, settings.config.loop.train_batch_size
    batch_size = block_size = max(asked, smallest)
    if is_eval_run(settings) and "eval_batch_size" in settings.explicit:
        trained_with = settings.checkpoint_args.get("eval_batch_size")
        batch_size, block_size = asked, max(trained_with or settings.program.flags["eval_batch_size"].default, smallest)
    return TextGenerator(
        components.space,
        components.model.denoiser,
        components.process,
        steps=settings.config.sampling.sampling_timesteps,
        batch_size=batch_size,
        block_size=block_size,
        whole_blocks=whole_blocks,
        device=device,
        autocast=autocast,
        max_length=settings.config.language_model.max_seq_len,
        guidance=settings.config.sampling.cls_free_guidance,
        dist=dist,
        absorbing=components.model.absorbing,
        hooks=make_hooks(settings, components, device),
        decoding=decoding_settings(settings.config.decoding, decoded_space_of(components.space) is not None),
    )


def make_sources(
    settings: Settings[DiffusionConfig],
    components: Components,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Sources | None:
    """The sources of a run for its sampler: packed or encoded; None for a run without sources."""
    if not components.seq2seq:
        return None
    if components.context is None:
        has_null = settings.config.process.seq2seq_unconditional_prob > 0
        return PackedSources(components.space, device, settings.config.packing.truncate_sources, has_null)
    decoded = decoded_space_of(components.space)
    prompts = decoded.prompts if decoded is not None and decoded.source_length else None
    return ContextSources(components.context, device, autocast, prompts)


def make_hooks(settings: Settings[DiffusionConfig], components: Components, device: torch.device) -> list[SamplerHook]:
    """The sampler hooks of the flags, the innermost first."""
    hooks: list[SamplerHook] = []
    control, rounding = settings.config.control, settings.config.clamp
    if control.latent_classifier is not None or control.target_label is not None:
        hooks.append(load_classifier_control(control, components.space, components.process, device))
    if rounding.clamp or rounding.rejection_rate:
        hooks.append(RoundingHook(rounding, components.space))
    if components.model.absorbing is not None and settings.config.absorbing.denoise:
        hooks.append(RemaskHook(components.model.absorbing, settings.config.absorbing.denoise_rate))
    return hooks


def check_guidance(settings: Settings[DiffusionConfig], sources: bool, packed: bool = False) -> None:
    """UserError if --cls_free_guidance is used without a condition, or the denoiser does not train without it too.

    Classifier-free guidance mixes the predictions with and without the condition. sources: whether the denoiser
    attends to a context encoder. packed: whether sources stand before their texts in one sequence instead.
    """
    weight = settings.config.sampling.cls_free_guidance
    if weight == 1:
        return
    null_sources = settings.config.process.seq2seq_unconditional_prob > 0
    shares = {
        "class_unconditional_prob": settings.config.denoiser.class_conditional,
        "seq2seq_unconditional_prob": sources or (packed and null_sources),
    }
    if not any(shares.values()) and packed:
        raise UserError(
            f"--cls_free_guidance {weight:g} mixes predictions with and without the source, and --latent_space "
            "embeddings packs the source into every text: leave guidance out, or train with "
            "--seq2seq_unconditional_prob 0.1, the share of examples whose source is hidden"
        )
    if not any(shares.values()):
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a condition: add --class_conditional, name a corpus with sources, "
            "or leave it out"
        )
    never = next((flag for flag, there in shares.items() if there and settings.get(flag) == 0), None)
    if never:
        raise UserError(
            f"--cls_free_guidance {weight:g} needs a denoiser that also trains without the condition, and --{never} "
            "is 0: leave guidance out, or train with a value above 0"
        )

"""Spaces whose texts a language model decodes, loaded from the run of its decoder or from a copy of it."""

from __future__ import annotations

from pathlib import Path

import torch

from latent_models.causal.decoder_args import read_text_decoder_args
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.decoded import DecodedSpace, copy_text_decoder
from latent_models.spaces.normalization import NormalizedSpace
from pipelines.cli.configs import DiffusionConfig
from utils.cli.settings import Settings
from utils.errors import UserError

TEXT_DECODER_COPY = "text_decoder"  # folder below a diffusion run: the decoder of its latents


def load_decoded_space(
    settings: Settings[DiffusionConfig],
    folder: Path,
    device: torch.device | str,
    language_model: str | None = None,
    fallback: str | None = None,
) -> DecodedSpace:
    """The frozen space of a decoder's folder; on the meta device for a dry run.

    language_model, fallback: see DecodedSpace.from_pretrained. Raises UserError for flags of models that the space does
    not have.
    """
    saved, named = read_text_decoder_args(folder), settings.config.frozen_models
    is_sentence = saved["latent_space"] == "sentence"
    if not is_sentence and named.encoder_model is not None and "encoder_model" in settings.explicit:
        raise UserError(
            f"--encoder_model {named.encoder_model} is of frozen embeddings, and the latents of {folder} are not: "
            "leave it out, or name their language model with --enc_dec_model"
        )
    if is_sentence and language_model is not None:
        raise UserError(
            f"--enc_dec_model {language_model} has no effect on latents of frozen embeddings: leave it out, or name "
            "their encoder with --encoder_model"
        )
    space = DecodedSpace.from_pretrained(
        folder,
        device=device,
        meta=torch.device(device).type == "meta",
        encoder_model=named.encoder_model if "encoder_model" in settings.explicit else None,
        decoder_model=named.decoder_model if "decoder_model" in settings.explicit else None,
        language_model=language_model,
        fallback=fallback,
    )
    space.decoder.generation_dtype = settings.config.generation.generation_dtype
    return space


def decoded_space_of(space: LatentSpace) -> DecodedSpace | None:
    """The space whose texts a language model decodes, below a normalization or not; None for any other."""
    inner = space.space if isinstance(space, NormalizedSpace) else space
    return inner if isinstance(inner, DecodedSpace) else None


def save_text_decoder(space: DecodedSpace, source: Path, run: Path) -> None:
    """Copy a decoder's folder into a run folder, which then needs no other but the frozen models."""
    copy_text_decoder(source, run / TEXT_DECODER_COPY, space)

"""How the flags of a space of token embeddings meet the others. Imports no torch, since every --help comes by here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields

from dataset_utils.options import PackingOptions
from latent_models.options import EmbeddingOptions, TokenizerOptions
from pipelines.flags.options import AbsorbingOptions, EmbeddingLossOptions, RoundingOptions
from utils.errors import UserError
from utils.settings import Settings

# Defaults that differ in this space: those of Li et al. 2022. Its decoding is arg-max, and nothing but that.
DEFAULTS = {"objective": "pred_x0"}
CHAIN = {"beta_schedule": "sqrt", "timesteps": 2000}
GROUPS = (
    TokenizerOptions,
    EmbeddingOptions,
    EmbeddingLossOptions,
    AbsorbingOptions,
    RoundingOptions,
    PackingOptions,
)
OWN = tuple(f.name for group in GROUPS for f in fields(group))
OTHERS = {  # flags of the other spaces -> what is wrong with them here
    "latent_model_path": "names an autoencoder, and embeddings have none",
    "normalize_latent": "would move embeddings that are learned; --normalize_embeddings keeps their norm",
    "context_encoder": "reads sources for other spaces; here a source stands before its target",
    "train_context_encoder": "is about other spaces; here a source stands before its target",
    "max_source_len": "is about other spaces; here source and target share --max_seq_len",
    "whole_batches": "is about language models, and embeddings are decoded at once",
    "decoding_cache": "is about language models, and embeddings are decoded at once",
    "decoding_precision": "is about language models, and embeddings are decoded at once",
    "latent_cache_dir": "is about frozen encoders, and embeddings change at every step",
}


def embeddings_meet(settings: Settings) -> None:
    """Defaults of the space of embeddings; flags of other spaces are refused there, and its own elsewhere."""
    if settings.latent_space is None:
        settings.set("latent_space", "compressed" if settings.latent_model_path else "states", source="default")
    if settings.latent_space != "embeddings":
        _elsewhere(settings)
        return
    for flag, why in OTHERS.items():
        if flag in settings.typed and settings.values[flag]:
            raise UserError(f"--{flag} {why}: leave it out, or --latent_space embeddings")
    if "enc_dec_model" in settings.typed:
        print(
            "note: --enc_dec_model has no effect on embeddings; --embedding_init begins with vectors", file=sys.stderr
        )
    _default(settings, DEFAULTS)
    if not {"train_schedule", "sampling_schedule"} & settings.typed:
        _default(settings, CHAIN)
    if settings.denoise and not settings.learned_mean_embed:
        raise UserError("--denoise replaces tokens by the absorbing state, which --learned_mean_embed learns: add that")
    if settings.unlabelled and settings.class_conditional:
        raise UserError("--unlabelled trains on running text, which has no classes: leave --class_conditional out")
    if settings.embedding_std <= 0:
        raise UserError(f"--embedding_std {settings.embedding_std:g} leaves no embeddings apart: give a number above 0")
    if "decoding" not in settings.typed:
        settings.set("decoding", "greedy")  # whatever a preset says
    if settings.decoding != "greedy":
        raise UserError(
            f"--decoding {settings.decoding} is for language models: embeddings are decoded to the likeliest tokens, "
            "which is greedy; leave it out"
        )


def _default(settings: Settings, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if settings.sources[name] == "default":
            settings.set(name, value)


def _elsewhere(settings: Settings) -> None:
    compressed = bool(settings.latent_model_path)
    if settings.latent_space == "compressed" and not compressed:
        raise UserError("--latent_space compressed needs an autoencoder: name its run with --latent_model_path")
    if settings.latent_space == "states" and compressed:
        raise UserError("--latent_space states and --latent_model_path exclude each other: give one")
    typed = next((flag for flag in OWN if flag in settings.typed), None)
    if typed:
        raise UserError(f"--{typed} is about token embeddings: add --latent_space embeddings, or leave it out")

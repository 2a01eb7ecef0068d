"""Frozen models beside the one that trains: features of training texts with which the latents of an autoencoder are
aligned (--alignment_weight), and a language model's encoder as it was before training (--feature_matching_weight).

A feature is the mean state of a layer of a frozen model, one vector per text, computed once and cached like latents.
They are centered: states of language models share a large mean, with which any latents would agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dataset_utils.corpus import Corpus
from latent_models.autoencoders.options import LatentLossOptions
from latent_models.pooling import masked_average
from latent_models.spaces.base import LatentSpace
from latent_models.text_encoders import TextEncoder
from pipelines.cli.configs import AutoencoderConfig
from pipelines.data.cached_latents import ENCODE_BATCH, EncodedSplit, encode_or_load
from pipelines.data.tokens import tokenize_split
from pipelines.run_context import RunContext, dataset_label
from utils.cache_folder import encoded_folder
from utils.errors import UserError
from utils.float64 import widened
from utils.records import Batch, Latents

MAX_CENTERED = 20_000  # texts from which the mean is estimated
FEATURES_DTYPE = "float16"  # on disk


class PooledStates(LatentSpace):
    """One latent per text: the mean of a frozen model's states over its tokens, (B, 1, d)."""

    variable_length = False

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder, self.length, self.dim = encoder, 1, encoder.dim

    def encode(self, batch: Batch) -> Latents:
        states = self.encoder.encode(batch.input_ids, batch.attention_mask)
        pooled = masked_average(states.float(), batch.attention_mask[:, None].bool())
        return Latents(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool, device=pooled.device))

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        raise UserError("pooled states have no decoder: they are what latents are aligned with")

    def fingerprint(self) -> str:
        return "pooled-" + self.encoder.fingerprint()


class AlignmentTargets:
    """rows (b,) of the training texts -> centered features (b, d) on the device."""

    def __init__(self, features: EncodedSplit) -> None:
        self.features = features
        rows = torch.arange(min(MAX_CENTERED, len(features.tokens)))
        parts = [features(part).x0[:, 0] for part in rows.split(ENCODE_BATCH)]
        self.mean = widened(torch.cat(parts)).mean(0).float()

    @property
    def dim(self) -> int:
        return self.features.space.dim

    def __call__(self, rows: Tensor) -> Tensor:
        return self.features(rows).x0[:, 0].float() - self.mean


def load_alignment_encoder(
    options: LatentLossOptions, language_model: str, *, meta: bool = False
) -> TextEncoder | None:
    """The frozen model of --alignment_model; None without --alignment_weight.

    language_model: the one that is used where no other is named. meta: on the meta device, for a dry run.
    """
    if not options.alignment_weight:
        return None
    name = options.alignment_model or language_model
    return TextEncoder.from_pretrained(name, layer=options.alignment_layer, meta=meta, flag="--alignment_model")


def load_encode_before_training(
    config: AutoencoderConfig, language_model: str, alignment: TextEncoder | None, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """(ids, mask) -> states of a language model's encoder as it was before it trained, for --feature_matching_weight.

    None where the encoder stays frozen, or no states are matched. alignment: the model of --alignment_weight, which is
    not loaded twice where it is the same one.
    """
    options = config.latent_losses
    if config.autoencoder.lm_mode != "ft" or not options.feature_matching_weight:
        return None
    encoder = alignment if options.alignment_model is None and options.alignment_layer is None else None
    if encoder is None:
        encoder = TextEncoder.from_pretrained(language_model, flag="--enc_dec_model")
    return encoder.to(device).encode


def make_alignment_targets(
    run: RunContext[AutoencoderConfig], encoder: TextEncoder, corpus: Corpus
) -> AlignmentTargets:
    """Features of the training texts, from a cache, or encoded batch by batch where that would be too large. Every
    rank calls it."""
    config = run.settings.config
    limit = config.language_model.max_seq_len
    tokens = tokenize_split(corpus.train, encoder, min(limit, encoder.max_length or limit))  # type: ignore[arg-type]
    space = PooledStates(encoder).to(run.device).eval()
    cache = config.encoder_cache
    folder = encoded_folder(cache.cache_dir, cache.latent_cache_dir, [run.folder])
    what, corpus_name = f"features by {encoder.name} of the training texts", dataset_label(run.settings)
    encoded = encode_or_load(
        space,
        tokens,
        folder,
        "alignment",
        what,
        run.dist,
        "auto",
        FEATURES_DTYPE,
        max_bytes=1e9 * cache.max_cache_gb,
        corpus=corpus_name,
    )
    return AlignmentTargets(encoded)

"""What a run will write to disk for its encoded corpus: sizes and place, for --dry_run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dataset_utils.batching import token_counts
from dataset_utils.corpus import Corpus
from dataset_utils.text_stats import MAX_MEASURED, evenly_spaced
from latent_models.cache import cache_layout
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from pipelines.data.tokens import tokenizer_of
from utils.array_cache import format_bytes, size_of
from utils.cache_folder import encoded_folder
from utils.cli.settings import Settings

SPLITS = ("train", "valid")  # those that a training encodes


def cache_lines(settings: Settings[Any], parts: Mapping[str, nn.Module], corpus: Corpus) -> list[str]:
    """Sizes of the caches that a training would write, and their folder; [] for a run that writes none.

    parts: the components of a dry run by name. Texts of more than MAX_MEASURED rows are measured by a sample.
    """
    values = settings.values
    if values.get("no_latent_cache") or "cache_dir" not in values:
        return []
    dtype = values.get("cache_encoder_states") or values.get("latent_cache_dtype", "float16")
    limit = 1e9 * values.get("max_cache_gb", math.inf)
    sizes = dict(_sizes(settings, parts, corpus, dtype)) if dtype != "no" else {}
    if not sizes:
        return []
    runs = [Path(settings.config.run.resume_dir)] if settings.config.run.resume_dir else []
    folder = encoded_folder(values["cache_dir"], values.get("latent_cache_dir"), runs)
    kept = sum(size for size in sizes.values() if size <= limit)
    lines = [f"encoded once, in {dtype}: {format_bytes(kept)} in {folder}"]
    for name, size in sizes.items():
        live = f", more than --max_cache_gb {limit / 1e9:g}: encoded at each step instead" if size > limit else ""
        lines.append(f"  {name:<16} {format_bytes(size)}{live}")
    return lines


def _sizes(
    settings: Settings[Any], parts: Mapping[str, nn.Module], corpus: Corpus, dtype: str
) -> Iterator[tuple[str, int]]:
    """Name and bytes of each cache."""
    length: Any = settings.values.get("max_seq_len")
    if "cache_encoder_states" in settings.values:  # of the autoencoder: the training texts alone
        states = EncoderStatesSpace(_language_model(parts["language model"]), length)
        yield "train texts", _bytes(states, states.language_model.tokenizer, corpus.train.texts, length, dtype)
        return
    space = next((part for part in parts.values() if isinstance(part, LatentSpace)), None)
    if space is None or space.learned_with_denoiser:
        return
    length = length or space.length
    for split in SPLITS:
        texts = corpus.splits[split].texts
        yield f"{split} texts", _bytes(space, tokenizer_of(space), texts, length, dtype)
    shared = parts.get("context encoder (shared)")
    if shared is not None and not settings.values.get("train_context_encoder"):
        model = _language_model(space)
        states = EncoderStatesSpace(model, settings.values.get("max_source_len") or length)
        for split in SPLITS:
            sources = corpus.splits[split].sources
            if sources is not None:
                yield f"{split} sources", _bytes(states, model.tokenizer, sources, states.length, dtype)


def _language_model(part: nn.Module) -> LanguageModel:
    return next(module for module in part.modules() if isinstance(module, LanguageModel))


def _bytes(space: LatentSpace, tokenizer: Any, texts: Sequence[str], length: int, dtype: str) -> int:
    """Bytes of the latents of texts."""
    if not space.one_latent_per_token:
        return size_of(len(texts), cache_layout(space, np.zeros(len(texts), np.int64), dtype))
    measured = evenly_spaced(texts, MAX_MEASURED)
    lengths = np.minimum(token_counts(tokenizer, measured)[0], length)
    return round(size_of(len(measured), cache_layout(space, lengths, dtype)) * len(texts) / max(1, len(measured)))

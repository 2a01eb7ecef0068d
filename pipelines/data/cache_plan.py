"""What a run will write to disk for its encoded corpus: sizes and place, for --dry_run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dataset_utils.batching import token_counts
from dataset_utils.corpus import Corpus
from dataset_utils.text_stats import MAX_MEASURED, evenly_spaced
from latent_models.cache import cache_layout
from latent_models.spaces.base import LatentSpace
from pipelines.data.tokens import tokenizer_of
from utils.array_cache import format_bytes, size_of
from utils.cache_folder import encoded_folder
from utils.cli.settings import Settings

SPLITS = ("train", "valid")  # those that a training encodes


@dataclass(frozen=True)
class PlannedCache:
    """The latents of a split that a training would write."""

    split: str
    what: str  # texts, sources, or features of texts
    space: LatentSpace  # weights are not needed
    max_length: int  # tokens to which a text is truncated
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.split} {self.what}"


def plan_splits(space: LatentSpace, max_length: int, dtype: str, what: str = "texts") -> list[PlannedCache]:
    """The caches of both splits that a training encodes."""
    return [PlannedCache(split, what, space, max_length, dtype) for split in SPLITS]


class Parts(dict[str, nn.Module]):
    """The components of a dry run by name, and the caches that a training would write."""

    def __init__(
        self, modules: Mapping[str, nn.Module], caches: Iterable[PlannedCache] = (), runs: Iterable[str | None] = ()
    ) -> None:
        """runs: folders of earlier runs, whose own caches are used on; see encoded_folder."""
        super().__init__(modules)
        self.caches = tuple(caches)
        self.runs = tuple(Path(run) for run in runs if run is not None)


def cache_lines(settings: Settings[Any], parts: Parts, corpus: Corpus) -> list[str]:
    """Sizes of the caches that a training would write, and their folder; [] for one that writes none.

    Texts of more than MAX_MEASURED rows are measured by a sample.
    """
    values = settings.values
    sizes = {cache: _bytes(cache, corpus) for cache in parts.caches if _texts(cache, corpus) is not None}
    if not sizes:
        return []
    limit = 1e9 * values["max_cache_gb"]
    folder = encoded_folder(values["cache_dir"], values.get("latent_cache_dir"), parts.runs)
    kept = sum(size for size in sizes.values() if size <= limit)
    dtypes = " and ".join(dict.fromkeys(cache.dtype for cache in sizes))
    lines = [f"encoded once, in {dtypes}: {format_bytes(kept)} in {folder}"]
    for cache, size in sizes.items():
        live = f", more than --max_cache_gb {limit / 1e9:g}: encoded at each step instead" if size > limit else ""
        lines.append(f"  {cache.name:<16} {format_bytes(size)}{live}")
    return lines


def _texts(cache: PlannedCache, corpus: Corpus) -> Sequence[str] | None:
    """What is encoded, of sources each once; None where the corpus has no sources."""
    split = corpus.splits[cache.split]
    if cache.what != "sources":
        return split.texts
    return None if split.sources is None else list(dict.fromkeys(split.sources))


def _bytes(cache: PlannedCache, corpus: Corpus) -> int:
    texts, space = _texts(cache, corpus) or [], cache.space
    if not space.one_latent_per_token:
        return size_of(len(texts), cache_layout(space, np.zeros(len(texts), np.int64), cache.dtype))
    measured = evenly_spaced(texts, MAX_MEASURED)
    lengths = np.minimum(token_counts(tokenizer_of(space), measured)[0], cache.max_length)
    return round(size_of(len(measured), cache_layout(space, lengths, cache.dtype)) * len(texts) / max(1, len(measured)))

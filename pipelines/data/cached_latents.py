"""Latents of a split by row number: read from a cache on disk, or encoded by the language model at each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from latent_models.cache import DISK_FULL_HINT, DeviceLatentCache, LatentCache, cache_key, cache_layout, open_or_build
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import NormalizedSpace
from pipelines.data.context_encoder import ContextEncoder, SourceReader, trim_padding
from pipelines.data.tokens import TokenSplit
from utils.array_cache import format_bytes, size_of
from utils.distributed import DistContext
from utils.progress import ProgressBar
from utils.records import Batch, Condition, Latents, to_device

ENCODE_BATCH = 256  # texts that are encoded at once to fill a cache


class EncodedSplit:
    """rows (B,) -> latents of the texts (or of the sources) of a split, not normalized, on the device."""

    def __init__(
        self, space: LatentSpace, data: TokenSplit, cache: LatentCache | DeviceLatentCache | None, device: torch.device
    ) -> None:
        self.space, self.tokens, self.cache, self.device = space, data, cache, device

    def __call__(self, rows: Tensor) -> Latents:
        if self.cache is not None:
            held = self.cache.get_raw(rows).to(self.device)
            return replace(held, x0=held.x0.float())  # after the copy: half precision halves the bytes to copy
        with torch.no_grad():
            return self.space.encode(self.tokens.batch(rows).to(self.device))


class ConditionalLatents:
    """rows (B,) -> normalized latents and their condition, on the device. See LatentSource."""

    def __init__(
        self,
        space: NormalizedSpace,
        texts: EncodedSplit,
        class_conditional: bool = False,
        sources: SourceReader | None = None,
    ) -> None:
        """texts: latents of the space before normalization. sources: states or token ids of the sources by row."""
        self.space, self.texts, self.class_conditional, self.sources = space, texts, class_conditional, sources
        self.num_rows = len(texts.tokens)

    def __len__(self) -> int:
        return self.num_rows

    @property
    def device(self) -> torch.device:
        return self.texts.device

    @property
    def tokens(self) -> TokenSplit:
        return self.texts.tokens

    def unnormalized(self, rows: Tensor) -> Latents:
        """Latents of rows (B,) before normalization."""
        return self.texts(rows)

    def __call__(self, rows: Tensor) -> tuple[Latents, Condition | None]:
        return self.space.normalize(self.unnormalized(rows)), self.condition(rows)

    def condition(self, rows: Tensor) -> Condition | None:
        """Classes and sources of rows (B,), none of them dropped; None for a run with neither."""
        classes, source, mask = None, None, None
        if self.class_conditional:
            labels = self.tokens.split.labels
            assert labels is not None, "a class-conditional run was built on a corpus without labels"
            classes = to_device(torch.tensor([labels[row] for row in rows.tolist()]), self.device)
        if self.sources is not None:
            source, mask = self.sources(rows)
        return None if classes is None and source is None else Condition.of(classes, source, mask)


def fits_on_device(flag: str, size: int, device: torch.device) -> bool:
    """Whether a cache of `size` bytes is copied to the device. flag: value of latents_on_device."""
    if flag == "auto":
        return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 5
    return flag == "on"


def make_source_reader(context: ContextEncoder, data: TokenSplit, encoded: EncodedSplit) -> SourceReader:
    """Sources of a split by row: cached states, or token ids where the encoder trains with the denoiser."""
    if not context.trained:
        return lambda rows: trim_padding(encoded(rows))

    def ids(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = data.batch(rows, None if encoded.device.type == "cpu" else data.table.max_length).to(encoded.device)
        return batch.input_ids, batch.attention_mask

    return ids


def encode_or_load(
    space: LatentSpace,
    data: TokenSplit,
    folder: Path | None,
    title: str,
    what: str,
    dist: DistContext,
    on_device: str,
    dtype: str = "float32",
    disk_full_hint: str = DISK_FULL_HINT,
) -> EncodedSplit:
    """Latents of a split from its cache below `folder`, which is filled now unless it is there. The ranks share it.

    folder: None for no cache; then each batch is encoded anew. title: part of the cache key. what: name of the latents
    in messages. on_device: value of latents_on_device. dtype: dtype of the files. disk_full_hint: end of the error
    message when the disk is full.
    """
    if folder is None:
        return EncodedSplit(space, data, None, dist.device)
    key = cache_key(space, data.split.texts, title, data.table.max_length, dtype)

    def batches(rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        return ((part, batch.to(dist.device)) for part, batch in data.length_sorted_batches(ENCODE_BATCH, rows))

    size = format_bytes(size_of(len(data), cache_layout(space, data.table.lengths, dtype)))
    with ProgressBar(f"encode {title}", len(data), unit="text", disable=not dist.is_main) as bar:
        if not (folder / key / "cache.json").is_file():
            others = any(place.parent.name != key for place in folder.glob("*/cache.json"))
            note = "; other caches in this folder are of other weights, texts or lengths" if others else ""
            bar.log(f"the {what} are encoded once, {size} in {folder / key}{note}")
        cache = open_or_build(
            folder,
            key,
            data.table.lengths,
            batches,
            space,
            dtype,
            rank=dist.rank,
            world_size=dist.world_size,
            progress=bar.advance_to,
            disk_full_hint=disk_full_hint,
        )
        dist.barrier()  # each rank has checked a share of the cache
        bar.advance_to(len(data), f"{size} of {what} in {cache.folder}")
    if fits_on_device(on_device, DeviceLatentCache.nbytes(cache), dist.device):
        return EncodedSplit(space, data, DeviceLatentCache(cache, dist.device), dist.device)
    return EncodedSplit(space, data, cache, dist.device)

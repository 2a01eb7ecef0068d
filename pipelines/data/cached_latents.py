"""Latents of a split by row number: read from a cache on disk, or encoded by the language model at each step."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_models.cache import DISK_FULL_HINT, DeviceLatentCache, LatentCache, cache_key, cache_layout, open_or_build
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import NormalizedSpace
from latent_models.spaces.sentence import UnscaledSpace
from pipelines.data.context_encoder import ContextEncoder, SourceReader, trim_padding
from pipelines.data.tokens import TokenSplit
from utils.array_cache import format_bytes, size_of
from utils.cache_folder import record_use
from utils.distributed import DistContext
from utils.errors import UserError
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
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):  # the latents of a cache
            encoded = self.space.encode(self.tokens.batch(rows).to(self.device))
            return replace(encoded, x0=encoded.x0.float())


class ScaledSplit(EncodedSplit):
    """Latents of a split whose cache holds them before scaling, so that runs with another scaling share it."""

    def __init__(self, unscaled: EncodedSplit, space: UnscaledSpace) -> None:
        super().__init__(unscaled.space, unscaled.tokens, unscaled.cache, unscaled.device)
        self.unscaled, self.scaled_by = unscaled, space

    def __call__(self, rows: Tensor) -> Latents:
        return self.scaled_by.scale(self.unscaled(rows))


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


def _check_folder(folder: Path) -> None:
    """UserError if no cache can be written into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the folder of encoded corpora {folder} cannot be made ({error.strerror}): name another one with "
            "--cache_dir"
        ) from None


def describe_cache(space: LatentSpace, data: TokenSplit, title: str, dtype: str, corpus: str) -> dict[str, Any]:
    """What a cache holds, for a list of caches: the key of its folder tells nobody."""
    model = getattr(space, "language_model", None)
    positions = "one a token" if space.one_latent_per_token else space.length
    return {
        "corpus": corpus,
        "split": title,
        "texts": len(data),
        "max_length": data.table.max_length,
        "model": getattr(model, "name", ""),
        "space": type(space).__name__,
        "latents": f"{positions} x {space.dim}",
        "dtype": dtype,
    }


def different_sources(sources: Sequence[str]) -> tuple[list[str], Tensor]:
    """The different sources in their order, and which of them each row (n,) has: E2E has eight texts of each."""
    number: dict[str, int] = {}
    of_rows = [number.setdefault(source, len(number)) for source in sources]
    return list(number), torch.tensor(of_rows)


def make_source_reader(
    context: ContextEncoder, data: TokenSplit, encoded: EncodedSplit, number: Tensor
) -> SourceReader:
    """Sources of a split by row: cached states, or token ids where the encoder trains with the denoiser.

    data, encoded: the different sources. number: (rows of the split,), which of them each row has.
    """
    if not context.trained:
        return lambda rows: trim_padding(encoded(number[rows.cpu()]))

    def ids(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = number[rows.cpu()]
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
    *,
    max_bytes: float = math.inf,
    corpus: str = "",
) -> EncodedSplit:
    """Latents of a split from its cache below `folder`, which is filled now unless it is there. The ranks share it, as
    do any processes that need the same one.

    folder: None for no cache; then each batch is encoded anew. title: part of the cache key. what: name of the latents
    in messages. on_device: value of latents_on_device. dtype: float16, bfloat16 or float32, on disk. disk_full_hint:
    end of the error message when the disk is full. max_bytes: a larger cache is not written, and each batch is encoded
    anew; one line says so. corpus: its name, for the list of caches.
    """
    if folder is None:
        return EncodedSplit(space, data, None, dist.device)
    num_bytes = size_of(len(data), cache_layout(space, data.table.lengths, dtype))
    if num_bytes > max_bytes:
        if dist.is_main:
            print(
                f"note: the {what} would take {format_bytes(num_bytes)} on disk, more than --max_cache_gb "
                f"{max_bytes / 1e9:g}: they are encoded at each step; a larger --max_cache_gb caches them",
                file=sys.stderr,
            )
        return EncodedSplit(space, data, None, dist.device)
    key = cache_key(space, data.split.texts, title, data.table.max_length, dtype)

    def batches(rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        return ((part, batch.to(dist.device)) for part, batch in data.length_sorted_batches(ENCODE_BATCH, rows))

    size = format_bytes(num_bytes)
    _check_folder(folder)
    with ProgressBar(f"encode {title}", len(data), unit="text", disable=not dist.is_main) as bar:
        if not (folder / key / "cache.json").is_file():
            bar.log(f"the {what} are encoded once, {size} in {dtype} in {folder / key}")
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
        if dist.is_main:
            record_use(cache.folder, describe_cache(space, data, title, dtype, corpus))
        dist.barrier()  # each rank has checked a share of the cache
        bar.advance_to(len(data), f"{size} of {what} in {cache.folder}")
    if fits_on_device(on_device, DeviceLatentCache.nbytes(cache), dist.device):
        return EncodedSplit(space, data, DeviceLatentCache(cache, dist.device), dist.device)
    return EncodedSplit(space, data, cache, dist.device)

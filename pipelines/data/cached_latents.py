"""Where diffusion training gets latents and sources from: the cache on disk, or a language model at each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latent_models.cache import NO_ROOM, LatentCache, LatentsOnDevice, cache_key, layouts_of, open_or_build
from latent_models.normalisation import Normalised
from latent_models.spaces import LatentSpace
from pipelines.data.context_encoder import Context, Reader, cut
from pipelines.data.tokens import TokenSplit
from utils.array_cache import in_words, size_of
from utils.distributed import Ranks
from utils.progress import Progress
from utils.records import Batch, Condition, Latents
from utils.transfer import moved

ENCODED_TOGETHER = 256  # texts


class Encoded:
    """rows (B,) -> one column of a split as latents of a space, on the device."""

    def __init__(
        self, space: LatentSpace, data: TokenSplit, cache: LatentCache | LatentsOnDevice | None, device: torch.device
    ) -> None:
        self.space, self.data, self.cache, self.device = space, data, cache, device

    def __call__(self, rows: Tensor) -> Latents:
        if self.cache is not None:
            held = self.cache.held(rows).to(self.device)
            return replace(held, x0=held.x0.float())  # on the device: half precision takes half the way there
        with torch.no_grad():
            return self.space.encode(self.data.batch(rows).to(self.device))


class LatentSource:
    """rows -> normalised latents and their condition, on the device."""

    def __init__(
        self, space: Normalised, texts: Encoded, class_conditional: bool = False, sources: Reader | None = None
    ) -> None:
        """texts: as latents of the space before normalisation. sources: rows -> source and its mask."""
        self.space, self.texts, self.class_conditional, self.sources = space, texts, class_conditional, sources

    def __len__(self) -> int:
        return len(self.texts.data)

    @property
    def device(self) -> torch.device:
        return self.texts.device

    @property
    def data(self) -> TokenSplit:
        return self.texts.data

    def raw(self, rows: Tensor) -> Latents:
        """Latents before normalisation."""
        return self.texts(rows)

    def __call__(self, rows: Tensor) -> tuple[Latents, Condition | None]:
        return self.space.normalise(self.raw(rows)), self.condition(rows)

    def condition(self, rows: Tensor) -> Condition | None:
        """Class and source of rows, all kept; None without either."""
        classes, source, mask = None, None, None
        if self.class_conditional:
            labels = self.data.split.labels
            assert labels is not None, "a class-conditional run was built on a corpus without labels"
            classes = moved(torch.tensor([labels[row] for row in rows.tolist()]), self.device)
        if self.sources is not None:
            source, mask = self.sources(rows)
        return None if classes is None and source is None else Condition.of(classes, source, mask)


def fits_on_device(flag: str, size: int, device: torch.device) -> bool:
    """Whether --latents_on_device (flag) puts so many bytes there."""
    if flag == "auto":
        return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 5
    return flag == "on"


def read_sources(context: Context, data: TokenSplit, encoded: Encoded) -> Reader:
    """What a run's sources are at each step: states, or, where their encoder trains along, ids."""
    if not context.trained:
        return lambda rows: cut(encoded(rows))

    def ids(rows: Tensor) -> tuple[Tensor, Tensor]:
        batch = data.batch(rows, None if encoded.device.type == "cpu" else data.table.max_length).to(encoded.device)
        return batch.input_ids, batch.attention_mask

    return ids


def encoded_split(
    space: LatentSpace,
    data: TokenSplit,
    folder: Path | None,
    title: str,
    what: str,
    ranks: Ranks,
    on_device: str,
    dtype: str = "float32",
    no_room: str = NO_ROOM,
) -> Encoded:
    """A column of a split from its cache below folder, encoded now unless it is there; the ranks share the work.

    folder: None for none, every batch is encoded anew. title: part of the key. what: it is, in words. on_device:
    --latents_on_device. dtype: on disk. no_room: what a user can do whose disk is too small.
    """
    if folder is None:
        return Encoded(space, data, None, ranks.device)
    key = cache_key(space, data.split.texts, title, data.table.max_length, dtype)

    def batches(rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        return ((part, batch.to(ranks.device)) for part, batch in data.by_length(ENCODED_TOGETHER, rows))

    size = in_words(size_of(len(data), layouts_of(space, data.table.lengths, dtype)))
    with Progress(f"encode {title}", len(data), unit="text", quiet=not ranks.main) as bar:
        if not (folder / key / "cache.json").is_file():
            others = any(place.parent.name != key for place in folder.glob("*/cache.json"))
            note = "; what else is there is of other weights, texts or lengths" if others else ""
            bar.say(f"the {what} are encoded once, {size} in {folder / key}{note}")
        how: dict[str, Any] = {"rank": ranks.rank, "world": ranks.world, "progress": bar.at, "no_room": no_room}
        cache = open_or_build(folder, key, data.table.lengths, batches, space, dtype, **how)
        bar.at(len(data), f"{size} of {what} in {cache.folder}")
    if fits_on_device(on_device, LatentsOnDevice.nbytes(cache), ranks.device):
        return Encoded(space, data, LatentsOnDevice(cache, ranks.device), ranks.device)
    return Encoded(space, data, cache, ranks.device)

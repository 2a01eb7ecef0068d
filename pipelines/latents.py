"""Where diffusion training gets its latents: from the cache on disk, or from the language model each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from latent_models.cache import LatentCache, LatentsOnDevice, cache_key, layouts_of, open_or_build
from latent_models.normalisation import Normalised
from pipelines.tokens import TokenSplit
from utils.array_cache import in_words, size_of
from utils.distributed import Ranks
from utils.progress import Progress
from utils.records import Batch, Condition, Latents


class LatentSource:
    """rows (B,) -> normalised latents and their condition, on the device."""

    def __init__(
        self,
        space: Normalised,
        data: TokenSplit,
        cache: LatentCache | LatentsOnDevice | None,
        device: torch.device,
        class_conditional: bool = False,
    ) -> None:
        self.space, self.data, self.cache, self.device = space, data, cache, device
        self.class_conditional = class_conditional

    def __len__(self) -> int:
        return len(self.data)

    def raw(self, rows: Tensor) -> Latents:
        """Latents before normalisation."""
        if self.cache is not None:
            return self.cache[rows].to(self.device)
        with torch.no_grad():
            return self.space.space.encode(self.data.batch(rows).to(self.device))

    def __call__(self, rows: Tensor) -> tuple[Latents, Condition | None]:
        latents = self.space.normalise(self.raw(rows))
        if not self.class_conditional:
            return latents, None
        labels = self.data.split.labels
        assert labels is not None, "a class-conditional run was built on a corpus without labels"
        return latents, Condition.of(class_id=torch.tensor([labels[row] for row in rows.tolist()], device=self.device))


def fits_on_device(flag: str, size: int, device: torch.device) -> bool:
    """Whether --latents_on_device (flag) puts so many bytes there."""
    if flag == "auto":
        return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] / 5
    return flag == "on"


def latent_cache(
    space: Normalised,
    data: TokenSplit,
    folder: Path,
    split: str,
    batch_size: int,
    ranks: Ranks,
) -> LatentCache:
    """The cache of one split below folder, encoded now unless it is there; the ranks share the work."""
    inner = space.space
    key = cache_key(inner, data.split.texts, split, data.table.max_length)

    def batches(rows: Tensor) -> Iterator[tuple[Tensor, Batch]]:
        return ((part, batch.to(ranks.device)) for part, batch in data.by_length(batch_size, rows))

    size = in_words(size_of(len(data), layouts_of(inner)))
    with Progress(f"encode {split}", len(data), unit="text", quiet=not ranks.main) as bar:
        if not (folder / key / "cache.json").is_file():
            others = any(place.parent.name != key for place in folder.glob("*/cache.json"))
            note = "; what else is there is of other weights, texts or lengths" if others else ""
            bar.say(f"the latents of the {split} split are encoded once, {size} in {folder / key}{note}")
        cache = open_or_build(
            folder, key, len(data), batches, inner, rank=ranks.rank, world=ranks.world, progress=bar.at
        )
        bar.at(len(data), f"{size} of latents in {cache.folder}")
    return cache

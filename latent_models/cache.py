"""Latents of a corpus, computed once and kept on disk as memory-mapped arrays.

Diffusion training then never runs the language model. A cache is keyed by everything that decides its content: weights
and tokenizer, texts, split, length and dtype. Another key is another folder, so a stale cache is never read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_models.spaces import LatentSpace
from utils.errors import UserError
from utils.records import Batch, Latents


def cache_key(space: LatentSpace, texts: Sequence[str], split: str, max_seq_len: int, dtype: str = "float32") -> str:
    """Hash of all that decides what the cache holds."""
    digest = sha256()
    for part in (space.fingerprint(), split, str(max_seq_len), dtype, str(len(texts))):
        digest.update(part.encode() + b"\0")
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


class LatentCache:
    """Rows of latents on disk. `cache[rows]` reads only those rows."""

    def __init__(self, folder: Path) -> None:
        try:
            self.facts = json.loads((folder / "cache.json").read_text())
            self.x0 = np.load(folder / "x0.npy", mmap_mode="r")
            self.mask = np.load(folder / "mask.npy", mmap_mode="r") if self.facts["masked"] else None
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} is not a whole latent cache ({error}): delete it, and it is made anew"
            ) from error
        self.folder = folder

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: Tensor) -> Latents:
        """Latents of rows (n,), on the CPU."""
        index = rows.cpu().numpy()
        x0 = torch.from_numpy(self.x0[index].astype(np.float32, copy=False))
        if self.mask is None:
            return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool))
        return Latents(x0, torch.from_numpy(self.mask[index]))


def open_or_build(
    folder: Path,
    key: str,
    rows: int,
    batches: Iterable[tuple[Tensor, Batch]],
    space: LatentSpace,
    dtype: str = "float32",
    progress: Callable[[int], None] | None = None,
) -> LatentCache:
    """The cache of `key` below `folder`, encoded now unless it is there.

    batches: (rows (n,), Batch) in any order, so that texts can be grouped by length; not touched where the cache is there.
    Written beside its place and renamed, so that a run killed here leaves nothing half made.
    """
    place = folder / key
    if (place / "cache.json").is_file():
        return LatentCache(place)
    partial = folder / f"{key}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    x0 = np.lib.format.open_memmap(partial / "x0.npy", mode="w+", dtype=dtype, shape=(rows, space.length, space.dim))
    mask = np.lib.format.open_memmap(partial / "mask.npy", mode="w+", dtype=bool, shape=(rows, space.length))
    training = space.training
    space.eval()
    with torch.no_grad():
        for index, batch in batches:
            latents = space.encode(batch)
            x0[index.numpy()] = latents.x0.float().cpu().numpy()
            mask[index.numpy()] = latents.mask.cpu().numpy()
            if progress is not None:
                progress(len(index))
    space.train(training)
    masked = not bool(mask.all())
    x0.flush()
    mask.flush()
    if not masked:
        (partial / "mask.npy").unlink()
    facts = dict(key=key, rows=rows, length=space.length, dim=space.dim, dtype=dtype, masked=masked)
    (partial / "cache.json").write_text(json.dumps(facts, indent=2))
    shutil.rmtree(place, ignore_errors=True)
    os.replace(partial, place)
    return LatentCache(place)

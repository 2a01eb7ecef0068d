"""Latents of a corpus, computed once and kept on disk as memory-mapped arrays.

Diffusion training then never runs the language model. A cache is keyed by everything that decides its content: weights
and tokenizer, texts, split, length and dtype. Another key is another folder, so a stale cache is never read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_models.spaces import LatentSpace
from utils.errors import UserError, fold
from utils.records import Batch, Latents
from utils.runs import write_json


def cache_key(space: LatentSpace, texts: Sequence[str], split: str, max_seq_len: int, dtype: str = "float32") -> str:
    """Hash of all that decides what the cache holds."""
    digest = sha256()
    for part in (space.fingerprint(), split, str(max_seq_len), dtype, str(len(texts))):
        digest.update(part.encode() + b"\0")
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


class LatentCache:
    """Latents on disk: x0 (n, L, D) and, where lengths differ, mask (n, L). `cache[rows]` reads only those rows.

    Errors: UserError where the folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.facts = facts = json.loads((folder / "cache.json").read_text())
            shape = (facts["rows"], facts["length"], facts["dim"])
            self.x0 = _open(folder / "x0.npy", shape, facts["dtype"])
            self.mask = _open(folder / "mask.npy", shape[:2], "bool") if facts["masked"] else None
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder} is not a whole latent cache ({fold(error)}): delete it, and it is made anew"
            ) from error
        self.folder = folder

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: Tensor) -> Latents:
        """Latents of rows (n,), float32, on the CPU."""
        index = rows.cpu().numpy()
        x0 = torch.from_numpy(self.x0[index].astype(np.float32, copy=False))
        if self.mask is None:
            return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool))
        return Latents(x0, torch.from_numpy(self.mask[index]))


def _open(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A memory-mapped array. ValueError where it is not what cache.json says."""
    array = np.load(path, mmap_mode="r")
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise ValueError(f"{path.name} holds {array.dtype} {list(array.shape)} instead of {dtype} {list(shape)}")
    return array


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

    batches: (rows (n,), Batch) in any order, so that texts can be grouped by length; each of `rows` exactly once. Not
    touched where the cache is there.
    progress: called with the number of texts that were just encoded.
    Written beside its place and renamed, so that a run killed here leaves nothing half made. Processes that ask for the
    same cache at once (ranks of one run) wait for the first of them, which builds it.
    """
    place = folder / key
    if not _whole(place):
        with _alone(folder / f"{key}.partial") as partial:
            if not _whole(place):  # another process may have built it meanwhile
                _build(partial, key, rows, batches, space, dtype, progress)
                shutil.rmtree(place, ignore_errors=True)
                os.replace(partial, place)
    return LatentCache(place)


def _whole(place: Path) -> bool:
    return (place / "cache.json").is_file()  # written last


@contextmanager
def _alone(partial: Path) -> Iterator[Path]:
    """A folder to build in, held by one process at a time; the hold ends with the process, however that ends."""
    partial.mkdir(parents=True, exist_ok=True)
    handle = None
    with suppress(ImportError, OSError):  # not every system, nor every file system, has such locks
        import fcntl

        handle = os.open(partial, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        partial.mkdir(parents=True, exist_ok=True)  # who held it before has renamed it
        yield partial
    finally:
        if handle is not None:
            os.close(handle)
        with suppress(OSError):
            partial.rmdir()  # only where it is empty


def _build(
    partial: Path,
    key: str,
    rows: int,
    batches: Iterable[tuple[Tensor, Batch]],
    space: LatentSpace,
    dtype: str,
    progress: Callable[[int], None] | None,
) -> None:
    """Encode every batch into arrays in `partial`; cache.json, which makes a folder a cache, comes last."""
    x0 = np.lib.format.open_memmap(partial / "x0.npy", mode="w+", dtype=dtype, shape=(rows, space.length, space.dim))
    mask = np.lib.format.open_memmap(partial / "mask.npy", mode="w+", dtype=bool, shape=(rows, space.length))
    seen = np.zeros(rows, dtype=int)
    training = space.training
    space.eval()
    try:
        with torch.no_grad():
            for index, batch in batches:
                latents = space.encode(batch)
                x0[index.numpy()] = latents.x0.float().cpu().numpy()
                mask[index.numpy()] = latents.mask.cpu().numpy()
                seen[index.numpy()] += 1
                if not np.isfinite(x0[index.numpy()]).all():
                    raise UserError(
                        f"encoding gives latents that {dtype} cannot hold (infinite or not a number): check the "
                        "weights of --enc_dec_model and of --latent_model_path"
                    )
                if progress is not None:
                    progress(len(index))
    finally:
        space.train(training)
    assert (seen == 1).all(), "every row of a cache is encoded exactly once"
    masked = not bool(mask.all())
    x0.flush()
    mask.flush()
    if not masked:
        (partial / "mask.npy").unlink()
    facts = dict(key=key, rows=rows, length=space.length, dim=space.dim, dtype=dtype, masked=masked)
    write_json(partial / "cache.json", facts)

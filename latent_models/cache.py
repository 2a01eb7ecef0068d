"""Latents of a corpus, computed once and kept on disk as memory-mapped arrays.

Diffusion training then never runs the language model. The key of a cache covers everything that determines its content:
weights, tokenizer, texts, split, length and dtype. Another key is another folder, so a stale cache is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_models.spaces.base import LatentSpace
from utils import array_cache
from utils.array_cache import ArrayCache, Layout
from utils.errors import UserError
from utils.records import Batch, Latents, to_device

DISK_FULL_HINT = "choose a disk with more space by --cache_dir, or encode at every step with --no_latent_cache"
STORED = {"bfloat16": "uint16"}  # dtypes that numpy lacks -> one of the same size for their bits
Batches = Callable[[Tensor], Iterable[tuple[Tensor, Batch]]]
"""rows (m,) -> batches (rows (k,), Batch), each row once, in any order, so that texts can be grouped by length."""


def cache_key(space: LatentSpace, texts: Sequence[str], split: str, max_seq_len: int, dtype: str = "float32") -> str:
    """Hash of all that determines the content of a cache.

    Keys of earlier releases lacked the splitting rules: texts whose latents these cached are encoded once more.
    """
    digest = sha256()
    for part in (space.fingerprint(), space.splitting_rules(), split, str(max_seq_len), dtype, str(len(texts))):
        digest.update(part.encode() + b"\0")
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


def cache_layout(space: LatentSpace, lengths: np.ndarray, dtype: str = "float32") -> dict[str, Layout]:
    """Arrays of a cache: x0 (n, L, D) and, where lengths differ, mask (n, L).

    lengths: (n,) tokens of each text; a space with one latent per token stores those positions only, (k, D).
    """
    dtype = STORED.get(dtype, dtype)
    if space.one_latent_per_token:
        return {"x0": Layout((space.dim,), dtype, lengths)}
    x0 = {"x0": Layout((space.length, space.dim), dtype)}
    return x0 | ({"mask": Layout((space.length,), "bool")} if space.variable_length else {})


def _from_stored(array: np.ndarray) -> Tensor:
    """Rows as a tensor of the dtype that they were stored in."""
    x = torch.from_numpy(array)
    return x.view(torch.bfloat16) if x.dtype == torch.uint16 else x


class NotFinite(UserError):
    """Latents that the dtype of a cache cannot hold. A caller with other flags gives advice of its own."""

    def __init__(self, problem: str, advice: str) -> None:
        """problem: the message without advice."""
        super().__init__(f"{problem}: {advice}")
        self.problem = problem


class LatentCache:
    """Latents on disk. `cache[rows]` reads only those rows."""

    def __init__(self, arrays: ArrayCache, length: int) -> None:
        """length: L, positions of a latent."""
        self.arrays, self.length, self.folder = arrays, length, arrays.folder

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, rows: Tensor) -> Latents:
        """Latents of rows (n,), float32, on the CPU."""
        stored = self.get_raw(rows)
        return replace(stored, x0=stored.x0.float())

    def get_raw(self, rows: Tensor) -> Latents:
        """As __getitem__, in the dtype on disk."""
        index = rows.cpu().numpy()
        if self.arrays.layouts["x0"].lengths is not None:
            padded, mask = self.arrays.padded_rows("x0", index, self.length)
            return Latents(_from_stored(padded), torch.from_numpy(mask))
        x0 = _from_stored(self.arrays.rows("x0", index))
        if "mask" not in self.arrays.layouts:
            return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool))
        return Latents(x0, torch.from_numpy(self.arrays.rows("mask", index)))


class DeviceLatentCache:
    """A latent cache copied to the memory of a device, padded, so that batches need no transfer from the host."""

    def __init__(self, cache: LatentCache, device: torch.device) -> None:
        self.folder, n = cache.folder, len(cache)
        first = cache.get_raw(torch.arange(min(1, n)))
        self.x0, self.mask = (
            torch.empty((n, *x.shape[1:]), dtype=x.dtype, device=device) for x in (first.x0, first.mask)
        )
        for start in range(0, n, 4096):  # in place: concatenating parts would need twice the memory
            rows = slice(start, min(start + 4096, n))
            part = cache.get_raw(torch.arange(rows.start, rows.stop))
            self.x0[rows], self.mask[rows] = part.x0.to(device), part.mask.to(device)

    @staticmethod
    def nbytes(cache: LatentCache) -> int:
        """Bytes that a cache needs on a device, with padding."""
        layout = cache.arrays.layouts["x0"]
        positions = len(cache) * cache.length
        return positions * (layout.shape[-1] * np.dtype(layout.dtype).itemsize + 1)

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, rows: Tensor) -> Latents:
        """Latents of rows (n,), float32, on the device."""
        stored = self.get_raw(rows)
        return replace(stored, x0=stored.x0.float())

    def get_raw(self, rows: Tensor) -> Latents:
        """As __getitem__, in the dtype of the cache."""
        rows = to_device(rows, self.x0.device)
        return Latents(self.x0[rows], self.mask[rows])


def open_or_build(
    folder: Path,
    key: str,
    lengths: np.ndarray,
    batches: Batches,
    space: LatentSpace,
    dtype: str = "float32",
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
    disk_full_hint: str = DISK_FULL_HINT,
) -> LatentCache:
    """The cache of `key` below `folder`; the texts are encoded now unless it exists.

    lengths: (n,) tokens of each text. batches: not touched where the cache is there. rank, world_size, progress,
    disk_full_hint: as in utils/array_cache, of which this is the case that a latent space encodes. Raises NotFinite.
    """

    def encode(start: int, stop: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        training = space.training
        space.eval()
        try:
            for index, batch in batches(torch.arange(start, stop)):
                with torch.no_grad():
                    latents = space.encode(batch)
                kept = latents.x0.float().to(getattr(torch, dtype)).cpu()
                if not kept.isfinite().all():
                    wider = "keep them in float32 or bfloat16 (--latent_cache_dtype), or " if dtype == "float16" else ""
                    raise NotFinite(
                        f"encoding gives latents that {dtype} cannot hold (infinite or not a number)",
                        f"{wider}check the weights of --enc_dec_model and of --latent_model_path",
                    )
                x0 = (kept.view(torch.uint16) if dtype in STORED else kept).numpy()
                yield index.numpy(), {"x0": x0, "mask": latents.mask.cpu().numpy()}
        finally:
            space.train(training)

    arrays = array_cache.open_or_build(
        folder,
        key,
        len(lengths),
        cache_layout(space, lengths, dtype),
        encode,
        rank=rank,
        world_size=world_size,
        progress=progress,
        disk_full_hint=disk_full_hint,
    )
    return LatentCache(arrays, space.length)

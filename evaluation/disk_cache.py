"""Caches of deterministic arrays that are costly to compute, such as features of references: on disk, and in memory.

Files are named by a hash of everything that determines the arrays, so an entry never becomes stale.
"""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.locks import exclusive

Arrays = Mapping[str, np.ndarray]
CHECKSUM = "checksum"  # first entry of each file: the archive has checksums of its entries, but none of their list


class RecentArrays:
    """Arrays in memory by key, the most recently used ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._arrays: OrderedDict[str, np.ndarray] = OrderedDict()

    def get(self, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a key; make() computes one that is not here."""
        if key not in self._arrays:
            self._arrays[key] = make()
            while len(self._arrays) > self.size:
                self._arrays.popitem(last=False)
        self._arrays.move_to_end(key)
        return self._arrays[key]


def cached_arrays(folder: Path | None, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of folder/{name}.npz; call make() and write the file if it is absent. folder None: no cache.

    name: contains a hash of all that determines the arrays. A file that cannot be read is made again. A folder that
    cannot be written raises nothing: the arrays are computed again next time.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    # any error: a damaged archive or header lets zipfile, numpy and Python's tokenizer raise what they like
    with suppress(Exception), np.load(path) as file:
        found = {key: file[key] for key in file.files}
        if found.pop(CHECKSUM, None) in (None, _checksum(found)):  # None: written by an earlier release
            return found
    arrays = make()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "cache"):
            partial = folder / f"{name}.partial.npz"  # one name, so that the next one replaces what a kill leaves
            try:
                np.savez(partial, **{CHECKSUM: np.array(_checksum(arrays)), **arrays})  # type: ignore[arg-type]
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    return arrays


def _checksum(arrays: Arrays) -> int:
    """CRC-32 of names, shapes and contents."""
    total = 0
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        total = zlib.crc32(x.tobytes(), zlib.crc32(f"{name} {x.dtype} {x.shape}".encode(), total))
    return total

"""Disk cache of deterministic arrays that are costly to compute, such as features of references.

Files are named by a hash of everything that determines the arrays, so an entry never becomes stale.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def cached_arrays(folder: Path | None, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of folder/{name}.npz; call make() and write the file if it is absent. folder None: no cache.

    name: contains a hash of all that determines the arrays. A file that cannot be read is made again. A folder that
    cannot be written raises nothing: the arrays are computed again next time.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    with suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile), np.load(path) as file:
        return {key: file[key] for key in file.files}
    arrays = make()
    partial = path.with_name(f"{name}.{os.environ.get('RANK', '0')}.{os.getpid()}.partial.npz")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    return arrays

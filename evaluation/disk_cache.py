"""Arrays that cost much and never change, such as features of references, kept in a folder under a fingerprint."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def cached_arrays(folder: Path | None, name: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `name` from the folder, or made now and put there. folder: None keeps nothing.

    name: of everything that decides them. A file that cannot be read is made anew; a folder that cannot be written to
    costs only the time of making them again.
    """
    if folder is None:
        return make()
    path = folder / f"{name}.npz"
    with suppress(OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile), np.load(path) as file:
        return {key: file[key] for key in file.files}
    made = make()
    partial = path.with_name(f"{name}.{os.environ.get('RANK', '0')}.{os.getpid()}.partial.npz")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **made)  # type: ignore[arg-type]
        os.replace(partial, path)
    return made

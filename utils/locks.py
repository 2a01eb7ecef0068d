"""One process at a time, among all that can see a file: ranks of a run, or programs started by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within, no other process is within for the same path. The hold ends with the process, however that ends.

    Where a system or a file system has no locks, nothing is held: what is done within must bear being done twice.
    """
    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        lock.unlink(missing_ok=True)  # who waits for it still gets its turn, and looks anew at what is there
        os.close(handle)

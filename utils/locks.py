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


_claimed: dict[Path, int] = {}  # folders of this process, and the handles that hold them


def claim(folder: Path) -> bool:
    """Whether this process has the folder to itself: until release(), or until it ends, however that ends.

    False where another process claimed it. Nothing is written. As of alone(), where there are no locks all may.
    """
    if folder.resolve() in _claimed:
        return True
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        return not isinstance(error, BlockingIOError)
    _claimed[folder.resolve()] = handle
    return True


def release(folder: Path) -> None:
    """Leave a claimed folder to others."""
    handle = _claimed.pop(folder.resolve(), None)
    if handle is not None:
        os.close(handle)

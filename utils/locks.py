"""File locks between processes: ranks of a run, or programs started by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Context manager: only one process at a time is inside it for the same path. The lock ends with the process.

    Without locks, on a system or a file system that has none, nothing is locked: the work inside must be safe to do
    twice.
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
        lock.unlink(missing_ok=True)  # a waiting process still gets the lock, and then checks the folder again
        os.close(handle)


_locked: dict[Path, int] = {}  # folders that this process has locked -> open handle


def try_lock(folder: Path) -> bool:
    """Lock a folder for this process until release(), or until the process ends in any way. Writes nothing.

    False where another process has locked it. As with exclusive(), nothing is locked where there are no locks.
    """
    if folder.resolve() in _locked:
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
    _locked[folder.resolve()] = handle
    return True


def release(folder: Path) -> None:
    """Unlock a folder that try_lock locked."""
    handle = _locked.pop(folder.resolve(), None)
    if handle is not None:
        os.close(handle)

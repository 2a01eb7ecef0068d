"""File locks between processes, by filelock: ranks of a run, or programs started by hand.

Lock files are hidden and stay where they are: if one were removed while a process waits for it, the next process would
lock a new file of that name, and both would be inside. A lock ends with its process, however that ends. Where a lock
file cannot be written or the file system has no locks, nothing is locked: the work inside must be safe to do twice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_NO_LOCKS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def exclusive(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Context manager: only one process at a time is inside it for the same path. Yields True.

    wait: False yields False, at once and without the lock, where another process is inside. Makes the folder of path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, held = _acquire(path.with_name(f".{path.name}.lock"), wait)
    try:
        yield held
    finally:
        if lock is not None:
            lock.release()


def _acquire(file: Path, wait: bool) -> tuple[FileLock | None, bool]:
    """(the lock, None where there are no locks; whether the caller may go on)."""
    lock = FileLock(file, timeout=-1 if wait else 0)
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o644))  # filelock waits for ever where this is impossible
        lock.acquire()
    except Timeout:
        return None, False
    except NotImplementedError:
        return None, True
    except OSError as error:
        if error.errno not in _NO_LOCKS and not isinstance(error, FileNotFoundError):
            raise
        return None, True
    return lock, True


# ------------------------------------------------------------------------------------------------- folders of a process


@dataclass
class _Folder:
    lock: FileLock | None
    handle: int | None  # of the folder, open, so that no other folder can get its inode


_folders: dict[Path, _Folder] = {}  # folders that this process has locked


def try_lock(folder: Path) -> bool:
    """Lock a folder for this process until release(), or until the process ends in any way.

    False where another process has locked it.
    """
    folder = folder.resolve()
    if folder in _folders and _folders[folder].lock is not None and not was_removed(folder):
        return True
    release(folder)
    _forget(folder)
    lock, held = _acquire(folder / ".lock", wait=False)
    if held:
        handle = None
        with suppress(OSError):  # not on Windows
            handle = os.open(folder, os.O_RDONLY)
        _folders[folder] = _Folder(lock, handle)
    return held


def release(folder: Path) -> None:
    """Unlock a folder that try_lock locked. was_removed() still knows it."""
    known = _folders.get(folder.resolve())
    if known is not None and known.lock is not None:
        known.lock.release()
        known.lock = None


def was_removed(folder: Path) -> bool:
    """Whether a folder that this process has locked was removed or renamed since, even if another has its name now."""
    known = _folders.get(folder.resolve())
    if known is None or known.handle is None:
        return known is not None and not folder.is_dir()
    try:
        return not os.path.samestat(os.fstat(known.handle), folder.stat())
    except OSError:
        return True


def _forget(folder: Path) -> None:
    known = _folders.pop(folder, None)
    if known is not None and known.handle is not None:
        os.close(known.handle)

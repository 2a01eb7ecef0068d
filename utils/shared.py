"""What the ranks of a run share: rank 0 makes it, the others wait and take it.

Not "whoever comes first makes it": libraries have their own idea of ranks, such as transformers, whose save_pretrained
writes nothing on any other rank than 0.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from utils.distributed import DistContext, broadcast_object, gather_objects
from utils.errors import UserError, user_message
from utils.heartbeat import beating
from utils.locks import exclusive

T = TypeVar("T")
_LOOKS, _SECONDS = 5, 1.0  # a network file system shows new files to other machines only after seconds


def make_on_main(dist: DistContext, make: Callable[[], T]) -> T:
    """Call make() on rank 0, and return its result on every rank; it is pickled. Every rank must call this.

    An error of make() is raised on every rank, as a UserError on the others.
    """
    if dist.world_size == 1:
        return make()
    made: tuple[Any, str | None] = (None, None)
    failure: Exception | None = None
    if dist.is_main:
        try:
            with beating():
                made = (make(), None)
        except Exception as error:
            made, failure = (None, user_message(error)), error
    result, message = broadcast_object(dist, made)
    if failure is not None:
        raise failure
    if message is not None:
        raise UserError(message)
    return result


def make_folder_on_main(dist: DistContext, folder: Path, make: Callable[[], Any]) -> None:
    """Call make(), which fills a small folder, on rank 0; afterwards every rank sees it. Every rank must call this.

    Ranks on a machine with another disk get a copy of its files. Errors as in make_on_main.
    """
    if dist.world_size == 1:
        make()
        return

    def made() -> dict[str, str]:
        make()
        return _digests(folder)

    expected = make_on_main(dist, made)
    if not any(gather_objects(dist, [not _appears(folder, expected)])):
        return
    files = broadcast_object(dist, _read(folder) if dist.is_main else None)
    with exclusive(folder):
        if _digests(folder) != expected:
            _write(folder, files)


def _appears(folder: Path, expected: dict[str, str]) -> bool:
    for look in range(_LOOKS):
        if _digests(folder) == expected:
            return True
        if not folder.parent.is_dir():
            break
        time.sleep(_SECONDS * (look < _LOOKS - 1))
    return False


def _read(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _digests(folder: Path) -> dict[str, str]:
    try:
        return {name: hashlib.sha256(content).hexdigest() for name, content in _read(folder).items()}
    except OSError:
        return {}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for name, content in files.items():
        path = partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)

"""The folder of what is computed once and shared among runs, as Hugging Face libraries have one for downloads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.locks import exclusive
from utils.run_folder import write_json

VARIABLE = "LATENT_DIFFUSION_CACHE"  # environment variable that names the folder
ENCODED = "encoded"  # folder in it: encoded corpora
ABOUT = "about.json"  # file of a cache: what it holds; its time is that of the last use


def cache_folder(given: str | None = None) -> Path:
    """The given folder (--cache_dir), else $LATENT_DIFFUSION_CACHE, else latent-text-diffusion in $XDG_CACHE_HOME,
    which is ~/.cache where it is not set."""
    if given or os.environ.get(VARIABLE):
        return Path(given or os.environ[VARIABLE]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latent-text-diffusion"


def encoded_folder(cache_dir: str | None = None, own: str | None = None, runs: Iterable[Path | None] = ()) -> Path:
    """The folder of encoded corpora: `own` (--latent_cache_dir), else latent_cache/ of one of the runs, which runs of
    earlier releases have and go on with, else encoded/ in the cache folder."""
    if own is not None:
        return Path(own)
    earlier = (run / "latent_cache" for run in runs if run is not None)
    return next((folder for folder in earlier if folder.is_dir()), cache_folder(cache_dir) / ENCODED)


def record_use(folder: Path, about: Mapping[str, Any]) -> None:
    """Note in a complete cache what it holds, and that it is used now. A folder that is only read stays as it is."""
    with suppress(OSError):
        if (folder / ABOUT).is_file():
            os.utime(folder / ABOUT)
        else:
            write_json(folder / ABOUT, dict(about))


@dataclass(frozen=True)
class Cache:
    """One cache on disk."""

    folder: Path
    about: Mapping[str, Any]
    bytes: int  # that it takes on disk
    used: float  # seconds since 1970 of its last use
    is_complete: bool

    def is_being_written(self) -> bool:
        """Whether a process holds one of the locks with which shards are written."""
        locks = [path for path in (*self.folder.glob(".*.lock"), *self.folder.glob("shards/.*.lock")) if path.is_file()]
        return any(not _is_free(path) for path in locks)

    def remove(self) -> None:
        """Remove the folder; by another name first, so that no process opens half of it. Who reads it goes on."""
        left = self.folder.with_name(f"{self.folder.name}.removed{os.getpid()}")
        os.replace(self.folder, left)
        shutil.rmtree(left, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    with exclusive(lock.with_name(lock.name.removeprefix(".").removesuffix(".lock")), wait=False) as mine:
        return mine


def find_caches(folder: Path) -> list[Cache]:
    """The caches in a folder, complete or not, the one that was used last first."""
    found = [_read(place) for place in folder.iterdir()] if folder.is_dir() else []
    return sorted((cache for cache in found if cache is not None), key=lambda cache: -cache.used)


def _read(place: Path) -> Cache | None:
    is_complete = (place / "cache.json").is_file()
    if not is_complete and not (place / "plan.json").is_file():
        return None
    about: Mapping[str, Any] = {}
    with suppress(OSError, ValueError):
        read = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        about = read if isinstance(read, dict) else {}
    files = [path.stat() for path in place.rglob("*") if path.is_file()]
    marker = next(path for path in (place / ABOUT, place / "cache.json", place / "plan.json") if path.is_file())
    # blocks, not lengths: arrays of an unfinished cache are sparse
    size = sum(getattr(stat, "st_blocks", -(-stat.st_size // 512)) * 512 for stat in files)
    return Cache(place, about, size, marker.stat().st_mtime, is_complete)

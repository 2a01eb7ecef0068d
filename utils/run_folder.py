"""Run folders: their names, paths relative to them, atomic writes, and the versions of code and packages."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent  # root folder of the project
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "datasets")


def new_run_folder(save_dir: str | Path, dataset: str) -> Path:
    """Make and return {save_dir}/{dataset}/{YYYY-mm-dd_HH-MM-SS}/, with a suffix for further runs of the same second.

    dataset: a name; characters other than letters, digits and . _ + - are replaced, so that it stays inside save_dir.
    """
    name = "".join(c if c.isalnum() or c in "._+-" else "_" for c in dataset).strip(".") or "run"
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"_{i}" for i in range(2, 1000))):
        folder = Path(save_dir) / name / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{Path(save_dir) / name} has a thousand runs of this second: give --output_dir")


def resolve(path: str | Path, run_folder: str | Path | None, flag: str) -> Path:
    """Resolve a path that a run records: as given, else relative to the run folder. flag: named in the UserError."""
    given = Path(path)
    places = [given] if run_folder is None or given.is_absolute() else [given, Path(run_folder) / given]
    for place in places:
        if place.exists():
            return place
    tried = " or ".join(map(str, places))
    raise UserError(f"{flag} {path}: not found as {tried}: give its present path with {flag}")


def write_text(path: str | Path, text: str) -> None:
    """Write a file atomically: to a temporary file in its folder, fsync, rename. Makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None:  # of write and fsync, which know no names
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically. ValueError for nan and infinity, which other readers refuse."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_partial_files(folder: Path) -> None:
    """Remove files that write_text of a killed process left in a folder and in the folders below it, one level deep."""
    for partial in [*folder.glob("*.partial"), *folder.glob("*/*.partial")]:
        pid = partial.suffixes[-2][1:] if len(partial.suffixes) > 1 else ""
        if pid.isdecimal() and len(pid) < 10 and not _is_alive(int(pid)):
            with suppress(OSError):
                partial.unlink()


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number now."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


@cache
def git_commit() -> str | None:
    """Commit of the code, with "+changes" when tracked files differ from it; None outside its repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None  # the folder is inside another repository, whose commit does not identify this code
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions(names: tuple[str, ...] = PACKAGES) -> Mapping[str, str]:
    """Versions of the installed packages, without importing them."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found

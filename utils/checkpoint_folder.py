"""One checkpoint on disk: a folder of safetensors files and a state.json, written atomically and checked when read.

state.json holds the metadata, the SHA-256 of each file, and the SHA-256 of its own content, so that one changed bit
anywhere in the folder is noticed. Nothing outside the folder is read. No pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.errors import UserError, one_line_text
from utils.run_folder import write_text

FORMAT = 1
_FILE = re.compile(r"\w[\w.+-]*\.safetensors", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_DAMAGE = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}  # of the machine, not of the file


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, dict[str, Tensor]]  # file -> name -> tensor; tied tensors are one object
    metadata: dict[str, Any]
    path: Path

    @property
    def step(self) -> int:
        return self.metadata["step"]


class DamagedError(Exception):
    """A checkpoint that differs from what was written."""


# ------------------------------------------------------------------------------------------------------------- writing


def write(target: Path, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint under another name, sync it to disk, and rename it. metadata: JSON values, exact.

    An old folder of that name exists as `replaced(target)` until the rename is done.
    """
    from safetensors.torch import save_file

    assert all(_FILE.fullmatch(f"{name}.safetensors") for name in tensors), "names of parts are names of files"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed here
    partial.mkdir()
    try:
        checksums, ties = {}, {}
        for name, content in tensors.items():
            stored, tied = _untie(content)
            file = partial / f"{name}.safetensors"
            save_file(stored, file, metadata={"format": "pt"})
            checksums[file.name] = _sha256(file)
            if tied:
                ties[name] = tied
        state = {"format": FORMAT, "facts": dict(metadata), "sha256": checksums, "tied": ties}
        write_text(partial / "state.json", _serialized({**state, "checksum": _checksum(state)}))
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        _put(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replaced(target: Path) -> Path:
    """The name of the old folder while a new one takes its place."""
    return target.with_name(target.name + ".replaced")


def _put(partial: Path, target: Path) -> None:
    """Rename a folder into place."""
    old = replaced(target)
    if target.exists():
        _discard(old)
        os.replace(target, old)
    os.replace(partial, target)
    _sync(target.parent)
    _discard(old)


def _discard(old: Path) -> None:
    """Remove a replaced folder, if there is one. By another name first: half of it would look like a damaged one."""
    left = old.with_suffix(".removed")
    shutil.rmtree(left, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(old, left)
    shutil.rmtree(left, ignore_errors=True)


def _untie(content: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors that share no memory, alias -> name of the one that is stored)."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[Any, str] = {}
    for name, x in content.items():
        x = x.detach()
        place = (x.device, x.data_ptr(), tuple(x.shape), x.stride(), x.dtype) if x.numel() else name
        if place in owners:
            tied[name] = owners[place]
            continue
        owners[place] = name
        x = x.cpu().contiguous()
        # safetensors refuses a view into a larger storage, such as one row of a table, or would write all of it.
        stored[name] = x if x.untyped_storage().nbytes() == x.numel() * x.element_size() else x.clone()
    return stored, tied


def _serialized(state: Mapping[str, Any]) -> str:
    """The only text that a state.json may have for this content. ValueError for nan and infinity."""
    return json.dumps(state, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(state: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a state.json, without this checksum itself."""
    content = {key: value for key, value in state.items() if key != "checksum"}
    return hashlib.sha256(_serialized(content).encode("utf-8")).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Checkpoint:
    """Load a checkpoint after checking every byte of it. Raises DamagedError, UserError where reading is refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    before = identity(path)
    state = verify(path)
    tensors = {}
    for name in state["sha256"]:
        try:
            tensors[Path(name).stem] = load_file(path / name)
        except (OSError, SafetensorError) as error:
            raise DamagedError(f"{name}: {one_line_text(error)}") from None
        except RuntimeError as error:  # of torch, which maps the file into memory, where it is gone by then
            if identity(path) == before and (path / name).is_file():
                raise
            raise DamagedError(f"{name}: {one_line_text(error)}") from None
    for name, tied in state["tied"].items():
        for alias, kept in tied.items():
            if kept not in tensors[name]:
                raise DamagedError(f"state.json ties {one_line_text(alias)} to a tensor that {name} lacks")
            tensors[name][alias] = tensors[name][kept]
    if identity(path) != before:  # else the tensors of a later step could come with the metadata of this one
        raise DamagedError("it was replaced while it was read")
    return Checkpoint(tensors, state["facts"], path)


def identity(path: Path) -> tuple[int, int, int] | None:
    """Changes when a folder is replaced, or files are removed from it; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns


def verify(path: Path) -> dict[str, Any]:
    """The content of state.json, after its checksums of itself and of every file. Raises DamagedError, UserError."""
    state = read_state(path)
    for name, checksum in state["sha256"].items():
        file = _inside(path, name)
        try:
            found = _sha256(file)
        except OSError as error:
            raise _unreadable(file, error) from None
        if found != checksum:
            raise DamagedError(f"the checksum of {name} has changed since it was written")
    return state


def read_state(path: Path) -> dict[str, Any]:
    """The content of state.json, checked. Raises DamagedError, and UserError for a checkpoint of a newer release."""
    file = _inside(path, "state.json")
    try:
        text = file.read_bytes().decode("utf-8")
        state = json.loads(text)
    except OSError as error:
        raise _unreadable(file, error) from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"state.json: {one_line_text(error) or 'nested too deeply'}") from None
    problem = _problem(state, text)
    if problem is not None:
        raise DamagedError(f"state.json: {problem}")
    if state["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer release (format {state['format']}): update this one")
    try:
        unlisted = sorted({file.name for file in path.glob("*.safetensors")} - set(state["sha256"]))
    except OSError as error:  # the folder was removed meanwhile
        raise _unreadable(path, error) from None
    if unlisted:
        raise DamagedError(f"state.json does not list {one_line_text(unlisted[0])}")
    return state


def _problem(state: Any, text: str) -> str | None:
    """What is wrong with the content of a state.json, or None. text: its text."""
    if not isinstance(state, dict):
        return "no object"
    if "checksum" in state:
        # the text too: 1E-05 and 1e-05 are one number, and yet one of them was not written here
        if state["checksum"] != _checksum_or_none(state) or text != _serialized(state):
            return "its checksum has changed since it was written"
    elif state.keys() != {"format", "facts", "sha256", "tied"} or state["format"] != FORMAT:
        return "neither the entries of an earlier release nor a checksum"
    names = state.get("sha256")
    if type(state.get("format")) is not int or state["format"] < 1:
        return "format must be a number from 1"
    if not isinstance(facts := state.get("facts"), dict) or type(facts.get("step")) is not int or facts["step"] < 0:
        return "facts must have a step"
    if not isinstance(names, dict) or not all(
        _FILE.fullmatch(name) and isinstance(sha, str) and _SHA256.fullmatch(sha) for name, sha in names.items()
    ):
        return "sha256 must map names of safetensors files in this folder to their checksums"
    parts = {Path(name).stem for name in names}
    needed = ["model"] + ["optimizer"] * ("optimizer" in facts)
    needed += ["ema"] * ("optimizer" in facts and facts.get("ema_updates") is not None)
    missing = next((part for part in needed if part not in parts), None)
    if missing is not None:
        return f"it lists no {missing}.safetensors"
    if not isinstance(ties := state.get("tied"), dict) or not all(
        part in parts and isinstance(tied, dict) and all(isinstance(kept, str) for kept in tied.values())
        for part, tied in ties.items()
    ):
        return "tied must map names of tensors to names, for each file"
    return None


def _checksum_or_none(state: Mapping[str, Any]) -> str | None:
    try:
        return _checksum(state)
    except (ValueError, RecursionError):  # NaN, or half a surrogate pair: never written here
        return None


def _inside(path: Path, name: str) -> Path:
    """A file of the folder. Raises DamagedError where it is missing, or a link that leads out of the folder."""
    file = path / name
    if file.is_symlink() and not (file.resolve().parent == path.resolve() or _is_hub_link(path, file.resolve())):
        raise DamagedError(f"{name} is a link to a file outside its folder")
    if not file.is_file():
        raise DamagedError(f"{name} is missing")
    return file


def _is_hub_link(path: Path, target: Path) -> bool:
    """Whether a link leads from a snapshot of a repository, as huggingface_hub caches it, to the files beside it."""
    snapshots = next((parent for parent in path.absolute().parents if parent.name == "snapshots"), None)
    return snapshots is not None and target.parent == (snapshots.parent / "blobs").resolve()


def _unreadable(file: Path, error: OSError) -> Exception:
    reason = error.strerror or one_line_text(error)
    if error.errno in _NOT_DAMAGE:
        return UserError(f"{file} cannot be read ({reason}): give this user the right to read it, or free memory")
    return DamagedError(f"{file.name}: {reason}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------------------------------------------------- values


def not_finite(tensors: Mapping[str, Mapping[str, Tensor]], parts: Iterable[str] = ("model", "ema")) -> str | None:
    """The first tensor of these parts that has nan or infinite values, as "part: name"; None if all are finite."""
    for part in parts:
        for name, x in tensors.get(part, {}).items():
            if (x.is_floating_point() or x.is_complex()) and not x.isfinite().all():
                return f"{part}: {name}"
    return None

"""Checkpoints of a run: which folders there are, which one is loaded, and which are removed.

    {run}/checkpoints/step_00001000/{name}.safetensors ...   the last `keep` of them
                                    state.json               metadata and checksums (utils/checkpoint_folder)
    {run}/best/                                              the same for the best checkpoint so far

A folder is written under another name, synced to disk and renamed, so that a run killed at any moment leaves a complete
one. What is damaged is neither loaded nor counted nor deleted. metadata["step"] gives the folder its name; no other
metadata or tensor is interpreted here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import checkpoint_folder
from utils.checkpoint_folder import Checkpoint, DamagedError, identity, not_finite, replaced
from utils.errors import UserError, is_disk_full, one_line_text
from utils.run_folder import remove_partial_files
from utils.sharding import full_tensor, shard_like

_NAME = re.compile(r"step_(\d+)(\.replaced)?")
_OWN = re.compile(r"best|step_\d+")
_LEFT = re.compile(rf"({_OWN.pattern})\.(partial|removed\d*)")
_TRIES = 20  # a reader lists the folders anew this many times while a training replaces them

_verified: dict[Path, Any] = {}  # checkpoint -> what its files looked like when this process wrote or checked them
_warned: set[Path] = set()  # folders of checkpoints for which a warning was printed


# ---------------------------------------------------------------------------------------------------- saving, loading


def save(
    folder: Path | str, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write folder/checkpoints/step_XXXXXXXX and remove all but the newest `keep`. metadata["step"] is the step.

    tensors: file name -> tensor name -> tensor. metadata: JSON values (floats are restored bit for bit). Raises
    UserError if weights are not finite or the disk is full; the earlier checkpoints stay.
    """
    assert keep >= 1, "at least the checkpoint just written must stay"
    root = Path(folder) / "checkpoints"
    target = _write(Path(folder), root / f"step_{metadata['step']:08d}", tensors, metadata)
    _prune(root, target, keep)
    return target


def load(folder: Path | str) -> Checkpoint:
    """Load the newest intact checkpoint of a run. Prints a warning for each damaged one.

    A training may write and remove checkpoints meanwhile. Raises UserError if there is none, or if the weights of the
    newest are not finite.
    """
    root, warned = Path(folder) / "checkpoints", set()
    for _ in range(_TRIES):
        listed = [(path, identity(path)) for _, path in _candidates(root)]
        for path, before in listed:
            try:
                return _check_finite(checkpoint_folder.read(path), folder)
            except DamagedError as damage:
                if before is None or identity(path) != before:
                    break  # it was removed or replaced while it was read: list anew
                if path not in warned:
                    warning = f"{path} is damaged ({damage}); trying the checkpoint before it"
                    print(f"warning: {one_line_text(warning)}", file=sys.stderr)
                warned.add(path)
        else:
            if listed:
                break
    found = "none of its checkpoints can be read" if has_checkpoint(folder) else "it holds no checkpoint"
    raise UserError(f"{folder}: {found}: name the folder of a run that has saved one, or train it again")


def newest(folder: Path | str) -> dict[str, Any] | None:
    """Metadata of the newest checkpoint whose state.json is intact, without its tensors; None without one."""
    for _, path in _candidates(Path(folder) / "checkpoints"):
        with suppress(DamagedError, UserError):
            return checkpoint_folder.read_state(path)["facts"]
    return None


def newest_good(folder: Path | str) -> Path | None:
    """The newest checkpoint that is intact and whose weights are finite, to name it in a message."""
    for _, path in _candidates(Path(folder) / "checkpoints"):
        with suppress(DamagedError, UserError, OSError):
            if not_finite(checkpoint_folder.read(path).tensors) is None:
                return path
    return None


def save_best(folder: Path | str, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> Path:
    """Write folder/best, replacing an earlier one. Raises UserError as save() does."""
    return _write(Path(folder), Path(folder) / "best", tensors, metadata)


def load_best(folder: Path | str) -> Checkpoint:
    """Load folder/best. Raises UserError if there is none, it is damaged, or its weights are not finite."""
    problem = "it holds no best checkpoint"
    for _ in range(_TRIES):
        listed = [(path, identity(path)) for path in _best_candidates(folder)]
        for path, before in listed:
            try:
                return _check_finite(checkpoint_folder.read(path), folder)
            except DamagedError as damage:
                if identity(path) != before:
                    break  # as in load()
                problem = f"its best checkpoint is damaged ({one_line_text(damage)})"
        else:
            if listed:
                break
    raise UserError(f"{folder}: {problem}: use the newest one, or continue training")


def has_checkpoint(folder: Path | str) -> bool:
    return bool(_candidates(Path(folder) / "checkpoints"))


def has_best(folder: Path | str) -> bool:
    return bool(_best_candidates(folder))


def sweep(folder: Path | str) -> None:
    """Remove what killed runs left in a run folder, and put back a checkpoint that was moved aside for a new one.

    The caller has locked the folder (utils.locks.try_lock).
    """
    folder = Path(folder)
    root = folder / "checkpoints"
    places = [path for place in (root, folder) if place.is_dir() for path in place.iterdir()]
    for path in places:
        with _going_on_after_errors(folder):
            if _LEFT.fullmatch(path.name):
                shutil.rmtree(path)
            elif path.name.endswith(".replaced") and _OWN.fullmatch(path.stem):
                _put_back(path)
    remove_partial_files(folder)


# ------------------------------------------------------------------------------------------------------------- folders


def _candidates(root: Path) -> list[tuple[tuple[int, bool], Path]]:
    """Checkpoint folders, newest first; one that was being replaced comes after its replacement."""
    try:
        names = os.listdir(root)
    except OSError:
        return []
    matches = [(m, root / name) for name in names if (m := _NAME.fullmatch(name))]
    return sorted((((int(m[1]), m[2] is None), p) for m, p in matches if p.is_dir()), reverse=True)


def _best_candidates(folder: Path | str) -> list[Path]:
    """best/, and the one that a kill between two renames leaves."""
    best = Path(folder) / "best"
    return [path for path in (best, replaced(best)) if path.is_dir()]


def _write(
    folder: Path, target: Path, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]
) -> Path:
    bad = not_finite(tensors, ("model", "ema", "optimizer"))
    if bad is not None:
        good = newest_good(folder)
        resume = f"resume {good} with a lower --clip_grad_norm or with --mixed_precision no, or " if good else ""
        raise UserError(
            f"the weights are nan or infinite at step {metadata['step']} ({bad}), and were not saved: "
            f"{resume}train again with a lower --learning_rate"
        )
    try:
        checkpoint_folder.write(target, tensors, metadata)
    except Exception as error:
        if not is_disk_full(error):
            raise
        good = newest_good(folder)
        advice = f"continue from {good} with --resume_training --resume_dir {folder}" if good else "train again"
        raise UserError(f"{target} cannot be written, because the disk is full: free space, then {advice}") from None
    _verified[target] = _appearance(target)
    return target


def _check_finite(checkpoint: Checkpoint, folder: Path | str) -> Checkpoint:
    bad = not_finite(checkpoint.tensors)
    if bad is None:
        return checkpoint
    good = newest_good(folder)
    advice = f"move it elsewhere, and {good} is used" if good else "train again with a lower --learning_rate"
    raise UserError(f"{checkpoint.path} holds weights that are nan or infinite ({bad}), of a failed training: {advice}")


def _prune(root: Path, written: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints up to the one just written; move damaged ones aside.

    Newer ones are of a run that was damaged and went back: never counted, and only moved aside if damaged.
    """
    kept, own = 1, int(written.name.removeprefix("step_"))
    for (step, _), path in _candidates(root):
        if path == written:
            continue
        with _going_on_after_errors(root):
            if path.name.endswith(".replaced") and path.with_suffix("").is_dir():
                _remove(path)
            elif step > own or kept < keep:
                damage = _damage(path)
                if damage is None:
                    kept += step < own
                else:
                    aside = _free_name(path, "damaged")
                    os.replace(path, aside)
                    print(f"note: {path} is damaged ({damage}) and is now {aside.name}", file=sys.stderr)
            else:
                _remove(path)


@contextmanager
def _going_on_after_errors(root: Path) -> Iterator[None]:
    """Context manager: what cannot be removed ends no training. One warning for each folder."""
    try:
        yield
    except OSError as error:
        if root not in _warned:
            reason = one_line_text(f"{error.filename or root}: {error.strerror or error}")
            print(f"warning: an old checkpoint cannot be removed ({reason}); training goes on", file=sys.stderr)
        _warned.add(root)


def _remove(path: Path) -> None:
    """Remove a folder; by another name first, so that no reader finds half of it."""
    if path.is_symlink():
        raise OSError(errno.EPERM, "it is a link, whose files may be needed elsewhere", str(path))
    left = _free_name(path, "removed")
    os.replace(path, left)
    shutil.rmtree(left)


def _put_back(old: Path) -> None:
    """Give a checkpoint that was moved aside its name again, unless an intact one has it."""
    target = old.with_suffix("")
    if target.exists():
        if _damage(target) is None:
            _remove(old)
            return
        os.replace(target, _free_name(target, "damaged"))
    os.replace(old, target)


def _free_name(path: Path, suffix: str) -> Path:
    names = (path.with_name(f"{path.name}.{suffix}{number or ''}") for number in range(1000))
    return next(name for name in names if not name.exists())


def _damage(path: Path) -> str | None:
    """What is damaged in a checkpoint, or None. Read only where files changed since this process wrote or read them."""
    try:
        if path not in _verified or _verified[path] != _appearance(path):
            checkpoint_folder.verify(path)
            _verified[path] = _appearance(path)
    except DamagedError as damage:
        return one_line_text(damage)
    except UserError:  # of a newer release, or not readable by this user: not damaged, as far as one can tell
        return None
    return None


def _appearance(path: Path) -> list[tuple[str, int, int, int]]:
    """Name, size, time and inode of each file."""
    found = [(file.name, file.stat()) for file in sorted(path.iterdir())]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in found]


# ----------------------------------------------------------------------------------------------------------- optimizer


def pack_optimizer(
    optimizer: torch.optim.Optimizer, collect: Callable[[Tensor], Tensor] = full_tensor
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors ("exp_avg/layer.weight") and metadata for JSON, by parameter name.

    collect: gathers one tensor, where it is sharded.
    """
    names = _parameter_names(optimizer)
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{key}/{names[index]}": collect(value)
        for index, values in state.items()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
    return tensors, optimizer_metadata(optimizer)


def optimizer_metadata(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer apart from tensors, for JSON."""
    names, state = _parameter_names(optimizer), optimizer.state_dict()
    scalars = {
        f"{key}/{names[index]}": value
        for index, values in state["state"].items()
        for key, value in values.items()
        if not isinstance(value, Tensor)
    }
    groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in state["param_groups"]]
    return {"scalars": scalars, "groups": groups, "names": names}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    *,
    keep_settings: bool = False,
) -> None:
    """Load a packed state into an optimizer over the same parameters. Raises UserError if the parameters differ.

    keep_settings: learning rate and the like stay those of the optimizer, and only its moments are loaded.
    """
    kinds = [group.keys() - {"params", "param_names"} for group in optimizer.param_groups]
    if keep_settings and kinds != [set(group) for group in metadata["groups"]]:
        raise UserError("the checkpoint has the moments of another --optimizer than this run: name the same one")
    names = _parameter_names(optimizer)
    if sorted(names) != sorted(metadata["names"]) or len(metadata["groups"]) != len(optimizer.param_groups):
        different = sorted(set(names) ^ set(metadata["names"]))
        raise UserError(
            f"the optimizer of the checkpoint has other parameters than this model (such as {different[:1]}): "
            f"resume with the flags that it was trained with"
        )
    indices = {name: i for i, name in enumerate(names)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for place, value in {**metadata["scalars"], **tensors}.items():
        key, _, name = place.partition("/")
        # a copy: load_state_dict keeps this tensor, and the optimizer changes it in place
        i = indices[name]
        state.setdefault(i, {})[key] = shard_like(value.clone(), parameters[i]) if isinstance(value, Tensor) else value
    fresh = optimizer.state_dict()["param_groups"]
    groups = [
        new if keep_settings else {**new, **{k: tuple(v) if k == "betas" else v for k, v in old.items()}}
        for new, old in zip(fresh, metadata["groups"], strict=True)
    ]
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        if "fused" in own:
            group["fused"] = own["fused"]  # the setting of this machine, not of the saved run
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _parameter_names(optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the order of the indices in state_dict; numbers where the optimizer has no names."""
    names: list[str] = []
    for group in optimizer.param_groups:
        names += group.get("param_names") or [str(len(names) + i) for i in range(len(group["params"]))]
    return names


# --------------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(tensors: Mapping[str, Tensor] | nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors (or of a module's state).

    Independent of the order of names and of the device.
    """
    content = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    digest = hashlib.sha256()
    for name in sorted(content):
        x = content[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Checkpoints: folders of safetensors files and a state.json, written atomically, without pickle.

    {run}/checkpoints/step_00001000/{name}.safetensors ...   the last `keep` of them
                                    state.json               metadata, and the SHA-256 of each file
    {run}/best/                                              the same for the best checkpoint so far

A folder is written under another name, synced to disk and renamed, so that a run killed at any moment leaves a complete
one. metadata["step"] gives the folder its name; no other metadata or tensor is interpreted here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError, one_line_text
from utils.run_folder import write_json
from utils.sharding import full_tensor, shard_like

FORMAT = 1
_NAME = re.compile(r"step_(\d+)(\.replaced)?")


@dataclass(frozen=True)
class Checkpoint:
    tensors: dict[str, dict[str, Tensor]]  # file -> name -> tensor; tied tensors are one object
    metadata: dict[str, Any]
    path: Path

    @property
    def step(self) -> int:
        return self.metadata["step"]


class _DamagedError(Exception):
    """A checkpoint that differs from what was written."""


# ---------------------------------------------------------------------------------------------------- saving, loading


def save(
    folder: Path | str, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write folder/checkpoints/step_XXXXXXXX and remove all but the newest `keep`. metadata["step"] is the step.

    tensors: file name -> tensor name -> tensor. metadata: JSON values (floats are restored bit for bit).
    """
    assert keep >= 1, "at least the checkpoint just written must stay"
    root = Path(folder) / "checkpoints"
    target = root / f"step_{metadata['step']:08d}"
    _write(target, tensors, metadata)
    for _, path in _candidates(root)[keep:]:
        shutil.rmtree(path)
    return target


def load(folder: Path | str) -> Checkpoint:
    """Load the newest intact checkpoint of a run. Prints a warning for each damaged one.

    Raises UserError if there is none.
    """
    root = Path(folder) / "checkpoints"
    for _, path in _candidates(root):
        try:
            return _read(path)
        except _DamagedError as damage:
            print(f"warning: {path} is damaged ({damage}); trying the checkpoint before it", file=sys.stderr)
    found = "none of its checkpoints can be read" if _candidates(root) else "it holds no checkpoint"
    raise UserError(f"{folder}: {found}: name the folder of a run that has saved one, or train it again")


def save_best(folder: Path | str, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> Path:
    """Write folder/best, replacing an earlier one."""
    return _write(Path(folder) / "best", tensors, metadata)


def load_best(folder: Path | str) -> Checkpoint:
    """Load folder/best. Raises UserError if there is none, or it is damaged."""
    best = Path(folder) / "best"
    problem = "it holds no best checkpoint"
    for path in (best, _replaced(best)):
        if path.is_dir():
            try:
                return _read(path)
            except _DamagedError as damage:
                problem = f"its best checkpoint is damaged ({damage})"
    raise UserError(f"{folder}: {problem}: use the newest one, or continue training")


def has_checkpoint(folder: Path | str) -> bool:
    return bool(_candidates(Path(folder) / "checkpoints"))


def _candidates(root: Path) -> list[tuple[tuple[int, bool], Path]]:
    """Checkpoint folders, newest first; one that was being replaced comes after its replacement."""
    if not root.is_dir():
        return []
    matches = [(m, p) for p in root.iterdir() if p.is_dir() and (m := _NAME.fullmatch(p.name))]
    return sorted((((int(m[1]), m[2] is None), p) for m, p in matches), reverse=True)


def _replaced(target: Path) -> Path:
    return target.with_name(target.name + ".replaced")


def _write(target: Path, tensors: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> Path:
    from safetensors.torch import save_file

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
        write_json(partial / "state.json", state)
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        _put(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _put(partial: Path, target: Path) -> None:
    """Rename a folder into place. An old folder of that name exists under another name until the rename is done."""
    old = _replaced(target)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(partial, target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        checksums, metadata, ties = state["sha256"], state["facts"], state["tied"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"state.json: {one_line_text(error)}") from None
    if state["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer release (format {state['format']}): update this one")
    tensors = {}
    for name, checksum in checksums.items():
        file = path / name
        if not file.is_file():
            raise _DamagedError(f"{name} is missing")
        if _sha256(file) != checksum:
            raise _DamagedError(f"the checksum of {name} has changed since it was written")
        tensors[file.stem] = load_file(file)
    for name, tied in ties.items():
        for alias, kept in tied.items():
            tensors[name][alias] = tensors[name][kept]
    return Checkpoint(tensors, metadata, path)


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Load a packed state into an optimizer over the same parameters. Raises UserError if the parameters differ."""
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
        {**new, **{k: tuple(v) if k == "betas" else v for k, v in old.items()}}
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

"""Folders of models that `python -m latent_models.pretrained` writes: where they lie, and whether they are intact.

Such a folder is an ordinary Hugging Face folder with one file more, RECORD: name, source, license, and the SHA-256 of
every other file.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from utils.errors import UserError

RECORD = "pretrained.json"
VARIABLE = "LATENT_DIFFUSION_MODELS"  # environment variable that names the folder of all models


def models_folder() -> Path:
    """Return the folder of the models: $LATENT_DIFFUSION_MODELS, else ~/.cache/latent-text-diffusion/models."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "latent-text-diffusion" / "models"


def find_model(name: str) -> Path | None:
    """Return the folder of a model by its name, such as smollm2-135m; None if it has not been made."""
    folder = models_folder() / name
    record = read_record(folder)
    return folder if record is not None and record["name"] == name else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read RECORD of a folder; None for a folder that `latent_models.pretrained` did not write."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    complete = (
        isinstance(record, dict) and isinstance(record.get("name"), str) and isinstance(record.get("sha256"), dict)
    )
    return record if complete else None


def damaged_file(folder: Path, record: dict[str, Any]) -> str | None:
    """Return the name of the first file that is missing or differs from its SHA-256; None if all are intact."""
    for name, expected in record["sha256"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != expected:
            return name
    return None


def check_intact(folder: Path, flag: str) -> dict[str, Any] | None:
    """Return the record of a folder, None if it has none. Raises UserError if a file is missing or was changed.

    flag: the flag that named the folder, for the message. Takes about a second for half a gigabyte.
    """
    record = read_record(folder)
    if record is not None and (name := damaged_file(folder, record)) is not None:
        raise UserError(
            f"{flag} {folder}: {name} is missing or was changed since the folder was made (its SHA-256 differs from "
            f"that in {RECORD}): make it again with python -m latent_models.pretrained {record['name']} "
            f"--output_dir {folder}"
        )
    return record


def same_weights(one: str | Path, other: str | Path) -> bool | None:
    """Return whether two folders hold the same model, by their files of weights; None if one is no folder of weights.

    One model may lie in two places. Files of equal sizes are read, which takes about a second for half a gigabyte.
    """
    folders = Path(one), Path(other)
    files = [{file.name: file.stat().st_size for file in _weights(folder)} for folder in folders]
    if not all(files):
        return None
    if files[0] != files[1]:
        return False
    if folders[0].samefile(folders[1]):
        return True
    return all(file_sha256(folders[0] / name) == file_sha256(folders[1] / name) for name in files[0])


def _weights(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("*.bin")] if folder.is_dir() else []


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

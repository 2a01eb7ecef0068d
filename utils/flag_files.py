"""Files that hold flags: the configuration of --config, and args.json of a run folder, ours or the reference's.

Which of them counts over which is utils.config's to say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError, fold
from utils.flags import convert, near
from utils.runs import git_commit, package_versions, write_json
from utils.settings import INVOCATION, MODES, Program, Settings

SCHEMA_VERSION = 1  # of args.json


def read_config(program: Program, path: Path) -> dict[str, Any]:
    """Flags of a configuration file: flat, or grouped by the headings of --help. Or another run's args.json."""
    data = _read_mapping(path, "the configuration")
    recorded = "schema_version" in data  # an args.json: it also holds facts, and flags of that invocation
    headings = {h.lower() for h in program.groups}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and not recorded:
            if key.lower() not in headings:
                raise UserError(f"{path}: no group of flags is called {key!r}{near(key, program.groups)}")
            flat.update(value)
        else:
            flat[key] = value
    if recorded:
        flat = {k: v for k, v in flat.items() if k in program.flags and k not in INVOCATION}
    result = {}
    for key, value in flat.items():
        if key in program.ignored and key not in program.flags:
            print(f"note: {key} in {path} has no effect: {program.ignored[key]}", file=sys.stderr)
            continue
        if key not in program.flags or key == "config":
            raise UserError(f"{path}: {program.name} has no flag {key!r}{near(str(key), program.flags)}")
        try:
            result[key] = convert(program.flags[key], value)
        except ValueError as error:
            raise UserError(f"{path}: {key} {error}") from None
    return result


def read_args(folder: Path) -> dict[str, Any]:
    """args.json of a run folder: ours, or one of the reference (no schema_version)."""
    path = Path(folder) / "args.json"
    if not path.is_file():
        found = "there is no such folder" if not Path(folder).is_dir() else "it holds no args.json"
        raise UserError(f"{folder} is not a run folder: {found}")
    data = _read_mapping(path, "the arguments of the run")
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer release (schema {version}, this one reads {SCHEMA_VERSION}): update"
        )
    if not data:
        raise UserError(f"{path} is empty: restore it, or train again")
    return data


def saved_flags(program: Program, saved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The flags among what args.json holds. What no flag is called is a fact of the run, or of another release."""
    result = {}
    for key, value in saved.items():
        if key not in program.flags or key in INVOCATION:
            continue
        try:
            result[key] = convert(program.flags[key], value)
        except ValueError as error:
            raise UserError(f"{folder / 'args.json'}: {key} {error}") from None
    return result


def write_args(settings: Settings, folder: Path | str, **facts: Any) -> Path:
    """Write args.json: the flags, flat, and what is known of the run. An evaluation never overwrites it.

    facts: anything JSON holds that no flag is called, e.g. device_name, trainable_params. Atomic.
    """
    clash = facts.keys() & settings.values.keys()
    assert not clash, f"these facts are called like flags: {sorted(clash)}"
    path = Path(folder) / "args.json"
    evaluates = any(settings.values.get(mode) for mode in MODES if mode != "resume_training")
    if path.exists() and evaluates:
        return path
    known = {
        "schema_version": SCHEMA_VERSION,
        "program": settings.program.name,
        "git_commit": git_commit(),
        "package_versions": package_versions(),
        "seed": settings.values.get("random_seed"),
    }
    write_json(path, {**settings.as_dict(), **known, **facts})
    return path


def _read_mapping(path: Path, what: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot read {what}: {reason}") from None
    try:
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            import yaml

            data = yaml.safe_load(text)
    except Exception as error:  # of two parsers
        raise UserError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'YAML'}: {fold(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise UserError(f"{path}: {what} must be a table of names and values")
    return data

"""Files that hold flags: the file of --config, and args.json of a run folder, ours or of the published code.

utils.cli.parse decides which of them takes precedence.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.cli.flags import LARGEST, convert, shown
from utils.cli.settings import Program, Settings
from utils.errors import UserError, did_you_mean, library_message, one_line_text
from utils.run_folder import git_commit, package_versions, write_json

SCHEMA_VERSION = 2  # version of args.json; 1: older names of flags
PRECISION_CHOSEN = "precision_chosen"  # entry of args.json: a device chose mixed_precision, nobody gave it


def read_config_argument(program: Program[Any], text: str) -> dict[str, Any]:
    """Flags of a --config argument: a file, or NAME=VALUE pairs joined by commas."""
    if "=" not in text or os.path.exists(text):  # Path.exists raises an error for a text that is too long for a name
        return read_config(program, Path(text))
    pairs = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--config {text}: expected NAME=VALUE pairs joined by commas, or a file")
        pairs[name.strip()] = value
    return _convert_config(program, pairs, "--config")


def read_config(program: Program[Any], path: Path) -> dict[str, Any]:
    """Flags of a configuration file: flat, or grouped by the headings of --help. Or another run's args.json."""
    data = _read_mapping(path, "the configuration")
    recorded = "schema_version" in data  # an args.json: it also holds metadata, and flags of that invocation
    headings = {h.lower() for h in program.groups}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and not recorded and (key.lower() in headings or key not in program.flags):
            if key.lower() not in headings:
                raise UserError(f"{path}: no group of flags is called {key!r}{did_you_mean(key, program.groups)}")
            inner = value
        else:
            inner = {key: value}
        if twice := flat.keys() & inner.keys():
            raise UserError(f"{path}: {one_line_text(min(map(str, twice)))} stands in it twice: remove one")
        flat.update(inner)
    if recorded:
        _check_schema(data, path)
        flat = {k: v for k, v in flat.items() if k in program.flags and not _of_invocation(program, k)}
        if data.get(PRECISION_CHOSEN):
            flat.pop("mixed_precision", None)  # the device of this invocation chooses its own
    return _convert_config(program, flat, str(path))


def _convert_config(program: Program[Any], flat: Mapping[str, Any], path: str) -> dict[str, Any]:
    result = {}
    for key, value in flat.items():
        if key in program.deprecated and key not in program.flags:
            print(one_line_text(f"note: {key} in {path} has no effect: {program.deprecated[key]}"), file=sys.stderr)
            continue
        if key not in program.flags or key == "config":
            raise UserError(f"{path}: {program.name} has no flag {key!r}{did_you_mean(str(key), program.flags)}")
        try:
            result[key] = convert(program.flags[key], value)
        except ValueError as error:
            raise UserError(f"{path}: {key} {error}") from None
    return result


class SavedArgs(dict[str, Any]):
    """The entries of an args.json. UserError where an entry is read that is missing."""

    def __init__(self, data: Mapping[str, Any], path: Path) -> None:
        super().__init__(data)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path} has no entry {key}: restore the file, or train again")


# Types of the entries that are no flags of every program: what the code that reads them relies on.
_TEXT, _NAMES = (str, type(None)), (list, type(None))
ENTRY_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("program", "enc_dec_model", "dataset_name", "lm_mode", "autoencoder", "latent_space"), _TEXT),
    **dict.fromkeys(("latent_model_path", "enc_dec_model_relative", "latent_model_path_relative"), _TEXT),
    **dict.fromkeys(("context_model", "context_model_relative", "teacher_relative", "distill_run"), _TEXT),
    **dict.fromkeys(("language", "context_language", "git_commit"), _TEXT),
    **dict.fromkeys(("language_model_fingerprint", "context_fingerprint", "tokenizer_fingerprint"), _TEXT),
    **dict.fromkeys(("space_fingerprint", "writer_fingerprint"), _TEXT),
    **dict.fromkeys(("schema_version", "max_seq_len", "train_batch_size", "gradient_accumulation_steps"), (int,)),
    **dict.fromkeys(("num_devices", "latent_dim", "latent_length", "embedding_width", "source_dim"), (int,)),
    **dict.fromkeys(("sampling_timesteps",), (int, type(None))),
    "scale": (int, float, type(None)),
    "seq2seq": (bool,),
    PRECISION_CHOSEN: (bool,),
    "class_names": _NAMES,
    "models_relative": (dict,),
    "weights_read": (dict,),
}


def read_args(folder: Path) -> SavedArgs:
    """args.json of a run folder: ours, or one of the reference (no schema_version).

    UserError if there is none, if it is of another release, or if an entry has another type than was written.
    """
    path = Path(folder) / "args.json"
    if not path.is_file():
        found = "it holds no args.json" if Path(folder).is_dir() else "there is no such folder"
        if Path(folder).is_file():
            found = "it is a file, so name the folder that holds args.json"
        raise UserError(f"{folder} is not a run folder: {found}")
    data = _read_mapping(path, "the arguments of the run")
    _check_schema(data, path)
    if not data:
        raise UserError(f"{path} is empty: restore it, or train again")
    for key, types in ENTRY_TYPES.items():
        if key not in data:
            continue
        value = data[key]
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        if fits and isinstance(value, list):
            fits = all(isinstance(name, str) for name in value)
        if fits and int in types and value is not None:
            fits = 0 <= value <= LARGEST
        if not fits:
            raise UserError(f"{path}: the entry {key} is {shown(value)}, which no run writes: restore the file")
    return SavedArgs(data, path)


def _check_schema(data: Mapping[str, Any], path: Path) -> None:
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer release (schema {version}, this one reads {SCHEMA_VERSION}): update"
        )
    if version < SCHEMA_VERSION:
        commit = data.get("git_commit") or "of that time"
        raise UserError(
            f"{path} was written by an older release (schema {version}, this one reads {SCHEMA_VERSION}): check out "
            f"the commit {commit} to use the run, or train again"
        )


def _of_invocation(program: Program[Any], name: str) -> bool:
    return program.flags[name].may_change == "invocation"


def saved_flags(program: Program[Any], saved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The flags among the keys of args.json. The other keys are metadata of the run."""
    result = {}
    for key, value in saved.items():
        if key not in program.flags or _of_invocation(program, key):
            continue
        try:
            result[key] = convert(program.flags[key], value)
        except ValueError as error:
            raise UserError(f"{folder / 'args.json'}: {key} {error}") from None
    return result


def write_args(settings: Settings[Any], folder: Path | str, **metadata: Any) -> Path:
    """Write args.json: the flags, flat, and metadata of the run. An evaluation never overwrites it. Atomic.

    metadata: JSON values under names that are not flags, such as device_name or trainable_params.
    """
    clash = metadata.keys() & settings.values.keys()
    assert not clash, f"these metadata have the names of flags: {sorted(clash)}"
    path = Path(folder) / "args.json"
    if path.exists() and settings.mode not in (None, "resume_training"):
        return path
    known = {
        "schema_version": SCHEMA_VERSION,
        "program": settings.program.name,
        "git_commit": git_commit(),
        "package_versions": package_versions(),
        "seed": settings.values.get("random_seed"),
    }
    write_json(path, {**settings.as_dict(), **known, **metadata})
    return path


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A table of a YAML or JSON file. UserError, in one line, where it is none. what: its content, for the message."""
    return _read_mapping(path, what)


def _read_mapping(path: Path, what: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file in UTF-8"
        raise UserError(f"{path}: cannot read {what}: {reason}") from None
    kind, parse = ("JSON", _parse_json) if path.suffix == ".json" else ("YAML", _parse_yaml)
    try:
        data = parse(text)
    except Exception as error:  # the parsers raise many, RecursionError among them
        raise UserError(f"{path}: not valid {kind}: {library_message(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise UserError(f"{path}: {what} must be a table of names and values")
    return data


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_table)


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Builds plain values only: no tag of a file makes an object or runs code."""

    def table(loader: Any, node: Any) -> dict[Any, Any]:
        loader.flatten_mapping(node)
        return _table([(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True))
                       for k, v in node.value])  # fmt: skip

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, table)
    return yaml.load(text, Loader)  # noqa: S506  a SafeLoader


def _table(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A table from its pairs. ValueError for a name that stands twice, of which a parser would take the last."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{one_line_text(name)} stands in it twice: remove one")
        found[name] = value
    return found

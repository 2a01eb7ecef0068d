"""Corpora from the Hugging Face hub, as parquet, only when asked for; the library is imported here alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dataset_utils.readers import Row, flat
from utils.errors import UserError

# our split -> what repositories call it, the first that is there
HUB_SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
PARQUET = "refs/convert/parquet"  # the hub's own copy, as parquet, of a repository that was a script
_PATIENCE = 5.0  # seconds; the library itself would try for half a minute


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub, its configuration where it has several, and the revision where it is not the newest."""

    path: str
    name: str | None = None
    revision: str | None = None

    def fetch(self, absent: str) -> Any:
        """The repository's splits by their own names. absent: what to say when it cannot be had."""
        import datasets

        if not hasattr(datasets, "load_dataset"):  # a folder of that name gives an empty module
            raise UserError(f"{absent} (the library `datasets` is not installed: pip install datasets)")
        if not (offline() or Path(self.path).is_dir() or reachable()):
            raise UserError(f"{absent} (the hub is unreachable now; with HF_HUB_OFFLINE=1 an earlier download is used)")
        try:
            try:
                return datasets.load_dataset(self.path, self.name, revision=self.revision)
            except RuntimeError as error:  # "Dataset scripts are no longer supported"
                if self.revision or "script" not in str(error):
                    raise
                return datasets.load_dataset(self.path, self.name, revision=PARQUET)
        except Exception as error:  # the library raises a dozen kinds, of half a dozen packages
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{absent} (the hub said: {type(error).__name__}: {reason})") from error

    def rows(self, absent: str) -> HubTables:
        """The splits that are there. absent: what to say when they cannot be had."""
        found = self.fetch(absent)
        names = {
            ours: next((n for n in theirs if n in found and len(found[n])), None) for ours, theirs in HUB_SPLITS.items()
        }
        if names["train"] is None:
            whole = [name for name in found if len(found[name])]
            if len(whole) != 1:
                raise UserError(
                    f"{self.path} on the hub has no split train, only {', '.join(found)}: name another corpus"
                )
            names["train"] = whole[0]
        tables = {ours: (f"{self.path} ({name})", _rows(found[name])) for ours, name in names.items() if name}
        features = found[names["train"]].features
        classes = {column: tuple(f.names) for column, f in features.items() if hasattr(f, "int2str")}
        return HubTables(tables, classes)


@dataclass(frozen=True)
class HubTables:
    """split -> (where, rows), and the names of classes of the columns that have some."""

    tables: dict[str, tuple[str, Iterator[Row]]]
    class_names: dict[str, tuple[str, ...]]


def parse_id(name: str) -> HubSource:
    """org/name, or org/name:configuration."""
    path, _, configuration = name.partition(":")
    return HubSource(path, configuration or None)


def _rows(table) -> Iterator[Row]:
    number = 0
    for columns in table.iter(batch_size=10_000):
        for values in zip(*columns.values(), strict=True):
            number += 1
            yield number, flat(dict(zip(columns, values, strict=True)))


def offline() -> bool:
    """Whether the user has told the hub's libraries to stay off the network."""
    yes = ("1", "TRUE", "ON", "YES")
    return any(os.environ.get(v, "").upper() in yes for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))


def reachable() -> bool:
    """Whether the hub answers within a few seconds. Behind a proxy we cannot know, and say yes."""
    if any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    end = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        port = end.port or (80 if end.scheme == "http" else 443)
        socket.create_connection((end.hostname or "", port), _PATIENCE).close()
    except OSError:
        return False
    return True

"""Corpora from the Hugging Face hub, as parquet, only when asked for; the library is imported here alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from dataset_utils.readers import Row, flat
from utils.errors import UserError

HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_PATIENCE = 5.0  # seconds; the library itself would try for half a minute


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub. revision "refs/convert/parquet": the hub's own copy of one that was a script."""

    path: str
    name: str | None = None
    revision: str | None = None

    def rows(self, absent: str) -> dict[str, tuple[str, Iterator[Row]]]:
        """split -> (where, rows), of the splits that are there. absent: what to say when it cannot be had."""
        import datasets

        if not hasattr(datasets, "load_dataset"):  # a folder of that name gives an empty module
            raise UserError(f"{absent} (the library `datasets` is not installed: pip install datasets)")
        if not offline() and not reachable():
            raise UserError(f"{absent} (the hub is unreachable now; with HF_HUB_OFFLINE=1 an earlier download is used)")
        try:
            found = datasets.load_dataset(self.path, self.name, revision=self.revision)
        except Exception as error:  # the library raises a dozen kinds, of half a dozen packages
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{absent} (the hub said: {type(error).__name__}: {reason})") from error
        return {
            ours: (f"{self.path} ({theirs})", _rows(found[theirs]))
            for ours, theirs in HUB_SPLITS.items()
            if theirs in found and len(found[theirs])
        }


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

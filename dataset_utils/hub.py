"""Corpora of the Hugging Face hub. The `datasets` library is imported only here, and only when a corpus is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_utils.readers import Row, flatten
from utils.errors import UserError, library_message
from utils.hub import is_online

# split -> its names in repositories; the first that exists is used
HUB_SPLITS = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
PARQUET = "refs/convert/parquet"  # the revision in which the hub keeps a parquet copy of repositories with scripts


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub."""

    path: str
    name: str | None = None  # configuration, if there are several
    revision: str | None = None  # None: the newest

    def download(self, hint: str) -> Any:
        """Splits by their names in the repository. hint: beginning of the error where it cannot be loaded."""
        import datasets

        if not hasattr(datasets, "load_dataset"):  # a folder with this name is imported as an empty module
            raise UserError(f"{hint} (the library `datasets` is not installed: pip install datasets)")
        if not (offline() or Path(self.path).is_dir() or is_online()):
            raise UserError(f"{hint} (the hub is unreachable; with HF_HUB_OFFLINE=1 an earlier download is used)")
        try:
            try:
                return datasets.load_dataset(self.path, self.name, revision=self.revision)
            except RuntimeError as error:  # "Dataset scripts are no longer supported"
                if self.revision or "script" not in str(error):
                    raise
                return datasets.load_dataset(self.path, self.name, revision=PARQUET)
        except Exception as error:  # the library raises a dozen classes from several packages
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{hint} (error of the hub: {type(error).__name__}: {reason})") from error

    def load(self, hint: str) -> HubTables:
        """The splits that the repository has. hint: beginning of the error where it cannot be loaded."""
        found = self.download(hint)
        names = {
            ours: next((n for n in theirs if n in found and len(found[n])), None) for ours, theirs in HUB_SPLITS.items()
        }
        if names["train"] is None:
            nonempty = [name for name in found if len(found[name])]
            if len(nonempty) != 1:
                raise UserError(
                    f"{self.path} on the hub has no split named train, only {', '.join(found)}: name another corpus"
                )
            names["train"] = nonempty[0]
        tables: dict[str, tuple[str, Iterable[Row]]] = {
            ours: (f"{self.path} ({name})", _rows(found[name], self.path)) for ours, name in names.items() if name
        }
        features = found[names["train"]].features
        classes = {column: tuple(f.names) for column, f in features.items() if hasattr(f, "int2str")}
        return HubTables(tables, classes)


@dataclass(frozen=True)
class HubTables:
    """split -> (name for messages, rows); and column -> class names, for the columns that have any."""

    tables: dict[str, tuple[str, Iterable[Row]]]
    class_names: dict[str, tuple[str, ...]]


def parse_id(name: str) -> HubSource:
    """Parse org/name or org/name:configuration."""
    path, _, configuration = name.partition(":")
    return HubSource(path, configuration or None)


def _rows(table: Any, where: str) -> Iterator[Row]:
    number = 0
    try:
        for columns in table.iter(batch_size=10_000):
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, flatten(dict(zip(columns, values, strict=True)))
    except Exception as error:  # columns of pictures or sound need packages, and decoding raises many classes
        raise UserError(
            f"{where} on the hub, after row {number}: cannot be read ({library_message(error)}): name another "
            "corpus, or download it and give its texts with --train_file"
        ) from None


def offline() -> bool:
    """Whether the environment keeps the libraries of the hub offline."""
    yes = ("1", "TRUE", "ON", "YES")
    return any(os.environ.get(v, "").upper() in yes for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))

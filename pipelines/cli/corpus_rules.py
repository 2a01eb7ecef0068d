"""Which corpus the flags name: typed flags count before those of a run, and those before a program's default."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli.configs import TrainingConfig
from utils.cli.settings import Settings
from utils.errors import UserError

if TYPE_CHECKING:
    from dataset_utils.catalog import DatasetSpec

FILES = ("train_file", "valid_file", "test_file")


def prefer_typed_corpus(settings: Settings[TrainingConfig]) -> None:
    """A corpus that is typed replaces one of a run, and the user's own files replace a program's default corpus.

    --data_dir names the root of a corpus that has a name, and otherwise the folder of the user's own files.
    """
    typed, data = settings.explicit, settings.config.data
    if "train_file" in typed:
        _drop(settings, "dataset_name", "data_dir")
    elif "dataset_name" in typed:
        _drop(settings, *FILES)
    elif "data_dir" in typed and data.data_dir:
        _drop(settings, *FILES)
        default = data.dataset_name
        if default and settings.origins["dataset_name"] == "default" and _holds_own_files(default, Path(data.data_dir)):
            _drop(settings, "dataset_name")


def _drop(settings: Settings[TrainingConfig], *names: str) -> None:
    for name in names:
        if name not in settings.explicit and settings.get(name) is not None:
            settings.set(name, None)


def _holds_own_files(default: str, folder: Path) -> bool:
    """Whether --data_dir alone names the user's own files, not the corpus that the program trains on by default."""
    from dataset_utils import user_files  # NumPy, which --help does without
    from dataset_utils.catalog import DATASETS

    folder, spec = folder.expanduser(), DATASETS[default]
    if not folder.is_dir():
        return folder.is_file()
    if folder.name in spec.folders or any((folder / name).is_dir() for name in spec.folders):
        return False
    named = [folder / name for name in spec.files.get("train", ()) if name.startswith(default)]
    if any(path.is_file() for path in named):
        return False
    if own := user_files.find_file(folder, "train"):
        return own.name not in spec.files.get("train", ()) or not _reads_as(spec, own)
    raise UserError(
        f"--data_dir {folder} holds neither texts of your own (train.txt, train.jsonl, train.csv ...) nor {default}, "
        f"the corpus that this program trains on by default: name a file with --train_file, or a corpus with "
        "--dataset_name"
    )


def _reads_as(spec: DatasetSpec, path: Path) -> bool:
    """Whether the first row of a file has the format of a corpus."""
    try:
        return spec.read is not None and next(iter(spec.read(path)), None) is not None
    except UserError:
        return False

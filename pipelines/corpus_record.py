"""What a run records of its corpus, and the comparison with the corpus that a later invocation reads.

args.json holds the digest of each split and the places of the files; HASHES holds a hash of every text, by which the
texts that differ are counted. A run is resumed on its own corpus alone. An evaluation on another one says so in its
protocol, with the share of held-out texts that the run has trained on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataset_utils import registry
from dataset_utils.corpus import Corpus
from dataset_utils.digest import SplitDigest, count_missing, digest_corpus, hash_corpus
from pipelines.cli.configs import TrainingConfig
from utils.cli.settings import Settings
from utils.errors import UserError

HASHES = "corpus.safetensors"  # file of a run folder
ENTRY = "corpus"  # in args.json
PATH_FLAGS = ("train_file", "valid_file", "test_file", "data_dir")
_SHARE = "_trained_on"  # end of the names of shares
OWN, ANOTHER, UNKNOWN = "the run's", "another than the run's", "not recorded"


@dataclass(frozen=True)
class CorpusRecord:
    """The corpus of this invocation, compared with that of the run that it uses."""

    corpus: Corpus
    digests: dict[str, SplitDigest]
    status: str | None = None  # OWN, ANOTHER or UNKNOWN; None for a new run
    differences: tuple[str, ...] = ()  # of ANOTHER, a clause for each split
    shares: Mapping[str, float] = field(default_factory=dict)  # of ANOTHER: of held-out texts in the run's training

    @property
    def is_another(self) -> bool:
        return self.status == ANOTHER

    def facts(self, folder: Path) -> dict[str, Any]:
        """The entry of args.json. folder: the run folder."""
        return {
            "splits": {name: digest.as_dict() for name, digest in self.digests.items()},
            "places": {split: os.path.relpath(path, folder) for split, path in self._files().items()},
        }

    def _files(self) -> dict[str, str]:
        return {split: path for split, path in self.corpus.files.items() if os.path.exists(path)}

    def write_hashes(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        partial = folder / f"{HASHES}.{os.getpid()}.partial"
        save_file(hash_corpus(self.corpus), partial)
        os.replace(partial, folder / HASHES)

    def metadata(self) -> dict[str, Any]:
        """Entries of the protocol of an evaluation."""
        if self.status is None:
            return {}
        return {"corpus": self.status, **self.shares}

    def warning(self, folder: Path) -> str:
        """A line for the log of an evaluation on another corpus."""
        known = [
            f"{share:.1%} of its {key.removesuffix(_SHARE).replace('_', ' ')}" for key, share in self.shares.items()
        ]
        trained = f"; the run has trained on {', '.join(known)}" if known else ""
        return (
            f"warning: {self.corpus.name} is not the corpus that {folder} was trained on "
            f"({'; '.join(self.differences)}){trained}"
        )


def compare_corpus(settings: Settings[TrainingConfig], corpus: Corpus) -> CorpusRecord:
    """The record of this corpus. UserError if a run would be resumed on another one than its own."""
    digests = digest_corpus(corpus)
    if settings.mode is None:
        return CorpusRecord(corpus, digests)
    folder = settings.path("resume_dir")
    recorded = _recorded_splits(settings.checkpoint_args, folder)
    if recorded is None:
        return CorpusRecord(corpus, digests, UNKNOWN)
    changed = [name for name, digest in digests.items() if _differ(digest, recorded.get(name))]
    if not changed:
        return CorpusRecord(corpus, digests, OWN)
    before, now = _read_hashes(folder), hash_corpus(corpus)
    clauses = tuple(_describe(name, digests[name], recorded.get(name), now, before) for name in changed)
    if settings.mode == "resume_training":
        where = corpus.files.get("train", corpus.name)
        raise UserError(
            f"{where} is not the corpus that {folder} was trained on: {'; '.join(clauses)}: {_advice(settings)}"
        )
    return CorpusRecord(corpus, digests, ANOTHER, clauses, _trained_shares(now, before))


def _recorded_splits(saved: Mapping[str, Any], folder: Path) -> dict[str, SplitDigest] | None:
    """The digests in args.json; None in a run of an earlier release."""
    if ENTRY not in saved:
        return None
    try:
        return {name: SplitDigest.from_dict(digest) for name, digest in saved[ENTRY]["splits"].items()}
    except (TypeError, KeyError, AttributeError, ValueError):
        raise UserError(f"{folder / 'args.json'}: the entry {ENTRY} is damaged: restore the file") from None


def _differ(now: SplitDigest, before: SplitDigest | None) -> bool:
    """Whether a column that both have differs. What one of them lacks is checked where it is needed."""
    if before is None or now.texts != before.texts:
        return True
    columns = ((now.sources, before.sources), (now.labels, before.labels))
    return any(a is not None and b is not None and a != b for a, b in columns)


def _describe(
    name: str,
    digest: SplitDigest,
    recorded: SplitDigest | None,
    now: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
) -> str:
    """What differs in a split, in a clause."""
    if recorded is None:
        return f"it had no {name} split"
    if digest.texts == recorded.texts:
        which = "sources" if digest.sources != recorded.sources else "labels"
        return f"its {name} texts had other {which}"
    if name not in before or len(before[name]) != recorded.num_texts:  # the file is missing or of another run
        return f"it had {recorded.num_texts:,} {name} texts, and these are {digest.num_texts:,} others"
    gone, new = count_missing(before[name], now[name]), count_missing(now[name], before[name])
    if not gone and not new:
        return f"its {name} texts stood in another order"
    return f"of its {recorded.num_texts:,} {name} texts {gone:,} are missing, and {new:,} are new"


def _trained_shares(now: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Shares of the held-out texts, and sources, of this corpus that stood in training."""
    shares = {}
    for name in ("valid", "test"):
        for column, kind in ((name, "texts"), (f"{name}_sources", "sources")):
            trained = before.get(f"train{column.removeprefix(name)}")
            if column in now and trained is not None:
                shares[f"{name}_{kind}{_SHARE}"] = float(np.isin(now[column], trained).mean())
    return shares


def _read_hashes(folder: Path) -> dict[str, np.ndarray]:
    """HASHES of a run folder; nothing if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with suppress(OSError, SafetensorError):
        return load_file(folder / HASHES)
    return {}


def _advice(settings: Settings[TrainingConfig]) -> str:
    """What to type next."""
    folder, data = settings.path("resume_dir"), settings.config.data
    names = [flag for flag in PATH_FLAGS if getattr(data, flag)] or ["data_dir"]
    name = f"name it with {' '.join(f'--{flag}' for flag in names)}"
    for flag, place in _recorded_places(settings.checkpoint_args, folder).items():
        given = getattr(data, flag)
        if given and place.exists() and not place.resolve().is_relative_to(Path(given).expanduser().resolve()):
            name = f"for the run's own pass --{flag} {place}"
    if (
        "init_path" in settings.program.flags and settings.get("latent_space") != "embeddings"
    ):  # these have a vocabulary
        return f"{name}, or train a new run on this one from its weights, with --init_path {folder}"
    return f"{name}, or train a new run on this one"


# ------------------------------------------------------------------------------------------------ moved files


def find_moved_corpus(settings: Settings[TrainingConfig]) -> list[str]:
    """Where files of the run's corpus are not where the run found them, name those at the same place beside the run.

    A run and its corpus may move together. Flags that were typed stay. Returns notes. UserError, which names the flag,
    for a file that is at neither place.
    """
    folder = settings.config.run.resume_dir
    if folder is None or settings.mode is None:
        return []
    notes = []
    for flag, place in _recorded_places(settings.checkpoint_args, Path(folder)).items():
        given = settings.get(flag)
        if flag in settings.explicit or _is_there(settings, given):
            continue
        if place.exists():
            settings.set(flag, str(place), source="saved")
            notes.append(f"the corpus of {folder} moved with it: --{flag} {place}")
        elif given:
            looked = str(given) if Path(given).absolute() == place.absolute() else f"{given} nor {place}"
            which = "not at" if looked == str(given) else "neither"
            raise UserError(f"the corpus of {folder} is {which} {looked}: give its present path with --{flag}")
    return notes


def _is_there(settings: Settings[TrainingConfig], given: str | None) -> bool:
    """Whether the corpus is at the place that was given; None: in one of the folders where the catalog looks."""
    if settings.config.data.dataset_name:
        return registry.missing_files_message(settings.config.data) is None
    return given is None or Path(given).expanduser().exists()


def _recorded_places(saved: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Flag -> the file or folder at the recorded place, relative to the run folder."""
    entry = saved.get(ENTRY)
    places = entry.get("places") if isinstance(entry, dict) else None
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        return {}
    found = {split: Path(os.path.normpath(folder / relative)) for split, relative in places.items()}
    if saved.get("train_file"):
        return {f"{split}_file": path for split, path in found.items() if saved.get(f"{split}_file")}
    if "train" not in found or "+" in str(saved.get("dataset_name")):
        return {}
    names_file = Path(str(saved.get("data_dir"))).name == found["train"].name
    return {"data_dir": found["train"] if names_file else found["train"].parent}

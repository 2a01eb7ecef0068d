"""Digests of a corpus: whether two readings of it hold the same texts, sources and labels in the same order.

A digest names the columns; hashes of the texts tell how many differ. This module reads no files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from dataset_utils.corpus import Corpus
from dataset_utils.grouped_split import hash_texts
from dataset_utils.splits import Split


@dataclass(frozen=True)
class SplitDigest:
    """SHA-256 of each column of a split, row by row; None for a column that it lacks."""

    num_texts: int
    texts: str
    sources: str | None = None
    labels: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> SplitDigest:
        """ValueError for anything else than as_dict() returns."""
        if not isinstance(data, dict) or data.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("no digest of a split")
        digest = cls(**data)
        columns = (digest.texts, digest.sources, digest.labels)
        if type(digest.num_texts) is not int or not all(c is None or isinstance(c, str) for c in columns):
            raise ValueError("no digest of a split")
        return digest


def digest_split(split: Split, class_names: tuple[str, ...] = ()) -> SplitDigest:
    """class_names: the names of the labels, which stand for them in the digest."""
    labels = None if split.labels is None else (class_names[label] for label in split.labels)
    return SplitDigest(
        len(split),
        _sha256(split.texts),
        None if split.sources is None else _sha256(split.sources),
        None if labels is None else _sha256(labels),
    )


def _sha256(texts: Iterable[str]) -> str:
    digest = sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def digest_corpus(corpus: Corpus) -> dict[str, SplitDigest]:
    """The digest of each split."""
    return {name: digest_split(split, corpus.class_names) for name, split in corpus.splits.items()}


def hash_corpus(corpus: Corpus) -> dict[str, np.ndarray]:
    """Hashes (n,) int64 of the texts of each split, and of the sources of pairs under "{split}_sources"."""
    hashes = {name: hash_texts(split.texts) for name, split in corpus.splits.items()}
    sources = {f"{name}_sources": split.sources for name, split in corpus.splits.items() if split.sources is not None}
    return hashes | {name: hash_texts(texts) for name, texts in sources.items()}


def count_missing(these: np.ndarray, those: np.ndarray) -> int:
    """How many of these hashes have no counterpart among those; a hash that stands twice needs two."""
    kinds, counts = np.unique(these, return_counts=True)
    known, others = np.unique(those, return_counts=True)
    at = np.searchsorted(known, kinds)
    found = np.zeros_like(counts)
    inside = at < len(known)
    same = np.zeros(len(kinds), bool)
    same[inside] = known[at[inside]] == kinds[inside]
    found[same] = others[at[same]]
    return int(np.maximum(counts - found, 0).sum())

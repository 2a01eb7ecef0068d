"""Memorization: the share of 4-grams and of whole texts that are copied from the training texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Self

import numpy as np

from evaluation.disk_cache import cached_arrays
from evaluation.hashing import scramble
from evaluation.optional import MissingPackage
from evaluation.text_tokens import compose, is_empty, tokenizer_version, tokens

N = 4  # words in an n-gram


class NgramIndex:
    """The 4-grams and the texts of a training set, as sorted 64-bit hashes.

    Hashes rather than strings: a hundred thousand stories hold four million 4-grams, 32 MB so and half a gigabyte as
    tuples. With that many, a 4-gram that is not in the training set counts as known with a probability of 2e-13.
    """

    def __init__(self, texts: Iterable[str], folder: Path | None = None):
        """folder: disk cache of the hashes, keyed by a hash of texts and tokenizer; None: no cache."""
        self._word_hashes: dict[str, int] = {}
        texts = list(texts)
        self.num_texts = len(texts)
        key = f"ngrams-{N}-{_digest([*texts, tokenizer_version()])}" if folder else ""
        try:
            arrays = cached_arrays(folder, key, lambda: self._hash_all(texts))
        except MissingPackage:  # raised again by known_ngrams, where an evaluation leaves the metric out
            arrays = {"grams": np.empty(0, np.uint64), "texts": _hash_texts(texts)}
        self._ngrams, self._texts = arrays["grams"], frozenset(arrays["texts"].tolist())

    def _hash_all(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        grams = [self._ngram_hashes(text) for text in texts]
        return {
            "grams": np.unique(np.concatenate(grams)) if grams else np.empty(0, np.uint64),
            "texts": _hash_texts(texts),
        }

    @classmethod
    def from_texts(cls, texts: Iterable[str] | Self) -> Self:
        """Return an index of the texts; an index is returned as it is."""
        return texts if isinstance(texts, cls) else cls(texts)  # type: ignore[arg-type]

    def known_ngrams(self, text: str) -> np.ndarray:
        """Return which 4-grams of the text occur in a training text: (tokens - 3,) bool, or (0,)."""
        grams = self._ngram_hashes(text)
        if not len(self._ngrams):
            return np.zeros(len(grams), dtype=bool)
        position = np.searchsorted(self._ngrams, grams).clip(max=len(self._ngrams) - 1)
        return self._ngrams[position] == grams

    def contains_text(self, text: str) -> bool:
        """Return True if the text equals a training text up to whitespace."""
        return _hash(_normalize_spaces(text)) in self._texts

    def _ngram_hashes(self, text: str) -> np.ndarray:
        """Return the hashes of the text's 4-grams: (tokens - 3,) uint64, or (0,)."""
        words = np.array([self._word_hash(word) for word in tokens(text)], dtype=np.uint64)
        if len(words) < N:
            return np.empty(0, np.uint64)
        mixed = np.zeros(len(words) - N + 1, np.uint64)
        for i in range(N):  # the hash depends on the order: each step scrambles the words before
            mixed = scramble(mixed + words[i : len(words) - N + 1 + i])
        return mixed

    def _word_hash(self, word: str) -> int:
        if word not in self._word_hashes:
            self._word_hashes[word] = _hash(word)
        return self._word_hashes[word]


def memorization(texts: Sequence[str], training: Iterable[str] | NgramIndex) -> dict[str, float]:
    """Compute the share of 4-grams (each occurrence counts) and of whole texts that occur in the training texts.

    `memorization` (4-grams) is nan if no text has four words, `train_copy_rate` (texts) if there is no text. An empty
    text is not a copy.
    """
    index = NgramIndex.from_texts(training)
    known = np.concatenate([index.known_ngrams(text) for text in texts] or [np.zeros(0, dtype=bool)])
    copies = sum(index.contains_text(text) for text in texts if not is_empty(text))
    return {
        "memorization": float(known.mean()) if len(known) else math.nan,
        "train_copy_rate": copies / len(texts) if len(texts) else math.nan,
    }


def _digest(texts: Sequence[str]) -> str:
    digest = sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:24]


def _hash_texts(texts: Sequence[str]) -> np.ndarray:
    return np.array([_hash(_normalize_spaces(text)) for text in texts], np.uint64)


def _normalize_spaces(text: str) -> str:
    return " ".join(compose(text).split())


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

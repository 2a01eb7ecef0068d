"""How much of a set of texts was copied from the training texts: 4-grams, and whole texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Self

import numpy as np

from evaluation.disk_cache import cached_arrays
from evaluation.text_tokens import is_empty, tokenizer_version, tokens

N = 4  # words in a run that counts as remembered


class NgramIndex:
    """The 4-grams and the texts of a training set, as sorted 64-bit hashes.

    Hashes rather than strings: a hundred thousand stories hold four million 4-grams, 32 MB so and half a gigabyte as
    tuples. With that many, a 4-gram that was never seen is taken for a seen one with a chance of 2e-13.
    """

    def __init__(self, texts: Iterable[str], folder: Path | None = None):
        """folder: where the hashes are kept, under a fingerprint of texts and tokenizer; None: nowhere."""
        self._words: dict[str, int] = {}
        texts = list(texts)
        self.size = len(texts)  # training texts
        found = cached_arrays(
            folder,
            f"ngrams-{N}-{_digest([*texts, tokenizer_version()])}" if folder else "",
            lambda: self._hashes(texts),
        )
        self._seen, self._texts = found["grams"], frozenset(found["texts"].tolist())

    def _hashes(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        grams = [self._grams(text) for text in texts]
        return {
            "grams": np.unique(np.concatenate(grams)) if grams else np.empty(0, np.uint64),
            "texts": np.array([_hash(_plain(text)) for text in texts], np.uint64),
        }

    @classmethod
    def of(cls, texts: Iterable[str] | Self) -> Self:
        """A memory of the texts; one that is given already is handed through."""
        return texts if isinstance(texts, cls) else cls(texts)  # type: ignore[arg-type]

    def known_ngrams(self, text: str) -> np.ndarray:
        """Which of the text's 4-grams occur in a training text: (tokens - 3,) bool, or (0,)."""
        grams = self._grams(text)
        if not len(self._seen):
            return np.zeros(len(grams), dtype=bool)
        place = np.searchsorted(self._seen, grams).clip(max=len(self._seen) - 1)
        return self._seen[place] == grams

    def contains_text(self, text: str) -> bool:
        """True of a text that is a training text, blanks apart."""
        return _hash(_plain(text)) in self._texts

    def _grams(self, text: str) -> np.ndarray:
        """Hashes of the text's 4-grams, uint64."""
        words = np.array([self._word(word) for word in tokens(text)], dtype=np.uint64)
        if len(words) < N:
            return np.empty(0, np.uint64)
        mixed = np.zeros(len(words) - N + 1, np.uint64)
        for i in range(N):  # order matters: each step scrambles what came before
            mixed = _scramble(mixed + words[i : len(words) - N + 1 + i])
        return mixed

    def _word(self, word: str) -> int:
        if word not in self._words:
            self._words[word] = _hash(word)
        return self._words[word]


def memorization(texts: Sequence[str], training: Iterable[str] | NgramIndex) -> dict[str, float]:
    """Share of the texts' 4-grams (each occurrence counts) that occur in any training text, and of texts that are one.

    `memorization` is nan where no text has four words, `exact_copy` where there is no text. Empty texts are no copies.
    """
    memory = NgramIndex.of(training)
    known = np.concatenate([memory.known_ngrams(text) for text in texts] or [np.zeros(0, dtype=bool)])
    copies = sum(memory.contains_text(text) for text in texts if not is_empty(text))
    return {
        "memorization": float(known.mean()) if len(known) else math.nan,
        "exact_copy": copies / len(texts) if len(texts) else math.nan,
    }


def _digest(texts: Sequence[str]) -> str:
    digest = sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:24]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _scramble(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of 64-bit integers in which every bit reaches all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

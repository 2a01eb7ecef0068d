"""The nearest training text of each sample, and the longest run of words that it shares with any training text.

    index = TrainingIndex(training_texts)
    index.nearest(samples)          a Nearest for each sample

Similarity: the Jaccard index of the sets of word 3-grams of sample and training text. Runs of n words are found for
n = 1, 2, ... in turn: a run of n words can be shared only where its first and its last n - 1 words are, so that fewer
and fewer places are left. Words are those of ROUGE: lower-cased, without punctuation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from evaluation.hashing import scramble
from evaluation.text_tokens import words

N = 3  # words in the n-grams of the similarity
MOST = 1000  # samples of an evaluation that are compared
RULE = f"Jaccard index of word {N}-grams"
CHUNK = 1 << 19  # words of training texts that are compared at once


@dataclass(frozen=True)
class Nearest:
    """What stands nearest to a sample in the training texts."""

    text: str  # the whole training text
    row: int  # its row in the training split
    similarity: float  # in [0, 1]
    shared: str  # the longest run of words of the sample that occurs in any training text
    shared_words: int

    def as_dict(self) -> dict[str, Any]:
        """The entry of a file of nearest texts."""
        shared = {"words": self.shared_words, "text": self.shared}
        return {"text": self.text, "row": self.row, "similarity": round(self.similarity, 4), "longest_shared": shared}


@dataclass(frozen=True)
class _Words:
    """Words of several texts, one after another: (W,) numbers of words, (W,) texts that they belong to."""

    ids: np.ndarray
    rows: np.ndarray

    @cached_property
    def left(self) -> np.ndarray:
        """(W,) the number of words from each word to the end of its text, itself included."""
        ends = np.flatnonzero(np.append(self.rows[1:] != self.rows[:-1], True)) + 1
        return np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(self.rows))


class TrainingIndex:
    """The words of training texts as numbers, in chunks. Texts are compared with all of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._numbers: dict[str, int] = {}
        self._chunks = list(self._read(texts))

    def _read(self, texts: Sequence[str]) -> Iterator[_Words]:
        ids: list[int] = []
        rows: list[np.ndarray] = []
        for row, text in enumerate(texts):
            found = [self._numbers.setdefault(word, len(self._numbers)) for word in words(text)]
            ids += found
            rows.append(np.full(len(found), row, np.int32))
            if len(ids) >= CHUNK or row == len(texts) - 1:
                if ids:
                    yield _Words(np.array(ids, np.int32), np.concatenate(rows))
                ids, rows = [], []

    def nearest(self, samples: Sequence[str]) -> list[Nearest | None]:
        """The nearest training text of each sample; of equal ones the first. None: a sample that shares no word."""
        spelled = [words(sample) for sample in samples]
        unknown = len(self._numbers)
        ids = [[self._numbers.get(word, unknown) for word in text] for text in spelled]
        query = _Query(ids, unknown)
        similarity, nearest = np.zeros(len(samples)), np.full(len(samples), -1)
        longest = np.zeros((len(samples), 3), int)  # words, place in the sample, training row
        for chunk in self._chunks:
            for sample, row, score in query.compare(chunk, longest):
                if score > similarity[sample]:
                    similarity[sample], nearest[sample] = score, row
        found: list[Nearest | None] = []
        for i, text in enumerate(spelled):
            count, place, row = longest[i].tolist()
            row = row if nearest[i] < 0 else int(nearest[i])
            shared = " ".join(text[place : place + count])
            found.append(Nearest(self.texts[row], row, float(similarity[i]), shared, count) if count else None)
        return found


class _Query:
    """Samples that are compared with training texts, a chunk at a time."""

    def __init__(self, ids: Sequence[Sequence[int]], unknown: int) -> None:
        """unknown: the number of words that no training text holds."""
        flat = np.array([i for text in ids for i in text], np.int64)
        self.words = _Words(flat, np.repeat(np.arange(len(ids)), [len(text) for text in ids]))
        starts = np.cumsum([0, *(len(text) for text in ids)])[:-1]
        self.place = np.arange(len(flat)) - starts[self.words.rows] if len(flat) else flat
        self.known = flat != unknown
        self.hashes = [np.zeros(len(flat), np.uint64)]  # of the run of n words that begins at each word
        grams = self._hashes(N)
        self.gram_rows, self.grams = _distinct(self.words.rows, grams, self.words.left >= N)
        self.num_grams = np.bincount(self.gram_rows, minlength=len(ids))

    def _hashes(self, n: int) -> np.ndarray:
        """(W,) hashes of the runs of n words that begin at each word."""
        while len(self.hashes) <= n:
            self.hashes.append(_extend(self.hashes[-1], self.words, len(self.hashes)))
        return self.hashes[n]

    def compare(self, chunk: _Words, longest: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """Yield (sample, nearest training row of the chunk, similarity), and raise the rows of `longest`."""
        mine, theirs = np.flatnonzero(self.known), np.arange(len(chunk.ids))
        hashes, n = np.zeros(len(chunk.ids), np.uint64), 0
        while len(mine) and len(theirs):
            n += 1
            hashes = _extend(hashes, chunk, n)
            mine = mine[self.words.left[mine] >= n]
            theirs = theirs[chunk.left[theirs] >= n]
            mine, theirs, example = _common(self._hashes(n), mine, hashes, theirs)
            if n == N:
                yield from self._similar(chunk, hashes, theirs)
            rows = self.words.rows[mine]
            longer = longest[rows, 0] < n
            first = np.unique(rows[longer], return_index=True)
            for sample, index in zip(*first, strict=True):
                at = np.flatnonzero(longer)[index]
                longest[sample] = n, self.place[mine[at]], chunk.rows[example[at]]
            # a longer run that begins here is shared only if the one that begins at the next word is shared, too
            mine, theirs = _followed(mine), _followed(theirs)

    def _similar(self, chunk: _Words, hashes: np.ndarray, theirs: np.ndarray) -> Iterator[tuple[int, int, float]]:
        first_row = int(chunk.rows[0])
        num_rows = int(chunk.rows[-1]) - first_row + 1
        rows, _ = _distinct(chunk.rows - first_row, hashes, chunk.left >= N)
        sizes = np.bincount(rows, minlength=num_rows)  # distinct 3-grams of each training text
        hit_rows, hits = _distinct(chunk.rows[theirs] - first_row, hashes[theirs], np.ones(len(theirs), bool))
        order = np.argsort(hits, kind="stable")
        hits, hit_rows = hits[order], hit_rows[order]
        begin, end = np.searchsorted(hits, self.grams), np.searchsorted(hits, self.grams, side="right")
        bounds = np.searchsorted(self.gram_rows, np.arange(len(self.num_grams) + 1))
        for sample in np.flatnonzero(self.num_grams).tolist():
            of_sample = slice(bounds[sample], bounds[sample + 1])
            parts = [hit_rows[b:e] for b, e in zip(begin[of_sample], end[of_sample], strict=True) if e > b]
            if parts:
                shared = np.bincount(np.concatenate(parts), minlength=num_rows)
                scores = shared / (self.num_grams[sample] + sizes - shared)
                best = int(scores.argmax())
                yield sample, first_row + best, float(scores[best])


def _extend(hashes: np.ndarray, texts: _Words, n: int) -> np.ndarray:
    """Hashes of runs of n words from those of n - 1; those that leave their text mean nothing."""
    last = np.zeros(len(hashes), np.uint64)
    if len(hashes) >= n:
        last[: len(hashes) - n + 1] = texts.ids[n - 1 :].astype(np.uint64)
    return scramble(hashes + last + np.uint64(1))


def _common(
    a: np.ndarray, at_a: np.ndarray, b: np.ndarray, at_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of each side whose hash occurs on the other, and for those of a the first such place of b."""
    of_b = b[at_b]
    if not len(of_b):
        none = np.zeros(0, int)
        return none, none, none
    order = np.argsort(of_b, kind="stable")
    of_a = a[at_a]
    position = np.searchsorted(of_b[order], of_a).clip(max=len(of_b) - 1)
    is_common = of_b[order][position] == of_a
    return at_a[is_common], at_b[np.isin(of_b, of_a[is_common])], at_b[order][position][is_common]


def _followed(places: np.ndarray) -> np.ndarray:
    """The places (sorted) whose next place is among them."""
    return places[:-1][np.diff(places) == 1] if len(places) else places


def _distinct(rows: np.ndarray, hashes: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct (row, hash) among the chosen ones, sorted by row."""
    rows, hashes = rows[chosen], hashes[chosen]
    order = np.lexsort((hashes, rows))
    rows, hashes = rows[order], hashes[order]
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]) | (hashes[1:] != hashes[:-1])
    return rows[new], hashes[new]

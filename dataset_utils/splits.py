"""A split: texts with their labels or sources; and how rows are divided where a corpus lacks a split.

This module reads no files and needs no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

SPLITS = ("train", "valid", "test")


@dataclass
class Examples:
    """Different sources, each with all its references: texts that are all right; or without any."""

    sources: list[str]
    references: list[list[str]]
    labels: list[int] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def texts(self) -> list[str]:
        """The first reference of each source; empty for one without."""
        return [texts[0] if texts else "" for texts in self.references]

    @property
    def has_references(self) -> bool:
        return any(self.references)

    @property
    def num_references(self) -> int:
        return sum(map(len, self.references))


@dataclass
class Split:
    """Texts of one split, with the label and the source of each row if the corpus has them."""

    texts: list[str]
    labels: list[int] | None = None  # 0 .. num_classes - 1
    sources: list[str] | None = None  # inputs of pairs: a document, a question, a sentence to translate
    has_texts: bool = True  # False: sources without references, whose texts are empty

    def __post_init__(self) -> None:
        for name, column in (("labels", self.labels), ("sources", self.sources)):
            assert column is None or len(column) == len(self.texts), f"{len(column)} {name}, {len(self.texts)} texts"

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Split:
        """A split of these rows, in this order."""
        return Split(
            [self.texts[i] for i in rows],
            None if self.labels is None else [self.labels[i] for i in rows],
            None if self.sources is None else [self.sources[i] for i in rows],
            self.has_texts,
        )

    def examples(self, order: Sequence[int], most: int, *, by_label: bool = False) -> Examples:
        """The sources of rows in this order, at most `most` of them, each once and with its references in every row.

        by_label: texts of one source with different labels are different examples.
        """
        assert self.sources is not None, "only pairs have sources"
        rows_of: dict[tuple[str, int | None], list[int]] = {}
        for i in order:
            label = self.labels[i] if by_label and self.labels is not None else None
            rows_of.setdefault((self.sources[i], label), []).append(i)
        chosen = [sorted(rows) for rows in rows_of.values()][:most]
        return Examples(
            [self.sources[rows[0]] for rows in chosen],
            [list(dict.fromkeys(self.texts[i] for i in rows)) if self.has_texts else [] for rows in chosen],
            None if self.labels is None else [self.labels[rows[0]] for rows in chosen],
        )

    def all_texts(self) -> list[str]:
        """Texts and sources: the training text of a language model or a tokenizer for this corpus."""
        return self.texts + (self.sources or [])


MAX_HELDOUT = 1000  # rows of a split that is taken from training; at most a tenth of the training rows


def permutation(n: int, seed: int) -> list[int]:
    """The order of `datasets.Dataset.shuffle(seed)`, so that splits equal those of the reference code."""
    return np.random.default_rng(seed).permutation(n).tolist()


def split_validation(splits: dict[str, Split], seed: int, notes: list[str]) -> dict[str, Split]:
    """ROCStories: shuffle the validation file; the first fifth is validation, the rest is test (1000 : 4000 rows)."""
    if "test" in splits or "valid" not in splits:
        return splits
    both = splits["valid"]
    if len(both) < 2:
        raise UserError(f"{len(both)} validation text cannot be split into validation and test: give a larger file")
    order = permutation(len(both), seed)
    first = max(1, len(both) // 5)
    notes.append(
        f"the validation file was shuffled with seed {seed} and split: "
        f"{first} validation and {len(both) - first} test rows"
    )
    return {**splits, "valid": both.select(order[:first]), "test": both.select(order[first:])}


def fill_missing_splits(splits: dict[str, Split], seed: int, notes: list[str]) -> dict[str, Split]:
    """Take the missing splits from the training split, by a seed, and add a line to notes.

    Copies of their texts are dropped from training, so that no validation or test text is trained on. Raises UserError
    if there are too few texts.
    """
    missing = [name for name in SPLITS if name not in splits]
    if not missing:
        return splits
    train = splits["train"]
    size = min(MAX_HELDOUT, max(1, len(train) // 10))
    if size * len(missing) >= len(train):
        raise UserError(
            f"{len(train)} training texts are too few to take {' and '.join(missing)} texts from: "
            "give more, or give a file for each split"
        )
    order = permutation(len(train), seed)
    made = dict(splits)
    taken: set[str] = set()
    for i, name in enumerate(missing):
        made[name] = train.select(order[i * size : (i + 1) * size])
        taken |= set(made[name].texts)
    rest = order[len(missing) * size :]
    kept = sorted(i for i in rest if train.texts[i] not in taken)
    if not kept:
        raise UserError(f"all {len(train)} training texts are copies of {len(taken)} texts: give different texts")
    made["train"] = train.select(kept)
    each = "each " if len(missing) > 1 else ""
    copies = f", and {len(rest) - len(kept)} copies of them dropped" if len(kept) < len(rest) else ""
    notes.append(f"no file for {' and '.join(missing)}: {size} rows {each}taken from training with seed {seed}{copies}")
    return {name: made[name] for name in SPLITS}


def concatenate(parts: Sequence[Split]) -> Split:
    """The rows of several splits, one after another, without labels: those of different corpora are not comparable."""
    sources = [part.sources for part in parts]
    texts = [text for part in parts for text in part.texts]
    if any(s is None for s in sources):
        return Split(texts)
    return Split(texts, None, [source for s in sources for source in s or ()])

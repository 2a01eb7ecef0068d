"""Texts of a split, with labels or sources where it has them, and which rows are for training, validation and test
where the files do not say. Knows no file, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

SPLITS = ("train", "valid", "test")


@dataclass
class Split:
    """Texts of one split; labels and sources, where there are any, stand beside them row by row."""

    texts: list[str]
    labels: list[int] | None = None  # 0 .. num_classes - 1
    sources: list[str] | None = None  # what a text depends on: a document, a question, a sentence to translate

    def __post_init__(self) -> None:
        for name, column in (("labels", self.labels), ("sources", self.sources)):
            assert column is None or len(column) == len(self.texts), f"{len(column)} {name}, {len(self.texts)} texts"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Split:
        """The split of these rows, in this order."""
        return Split(
            [self.texts[i] for i in rows],
            None if self.labels is None else [self.labels[i] for i in rows],
            None if self.sources is None else [self.sources[i] for i in rows],
        )

    def all_texts(self) -> list[str]:
        """Texts and sources: what a language model or a tokenizer of this corpus should have seen."""
        return self.texts + (self.sources or [])


MOST = 1000  # rows of a split that is cut off; and no more than a tenth


def permutation(n: int, seed: int) -> list[int]:
    """The order that `datasets.Dataset.shuffle(seed)` gives, so that our splits are those of the reference."""
    return np.random.default_rng(seed).permutation(n).tolist()


def divide_valid(splits: dict[str, Split], seed: int, notes: list[str]) -> dict[str, Split]:
    """ROCStories: the validation file, shuffled, is one fifth validation and four fifths test (1000 : 4000)."""
    if "test" in splits or "valid" not in splits:
        return splits
    both = splits["valid"]
    if len(both) < 2:
        raise UserError(f"{len(both)} validation text cannot be divided into validation and test: give a larger file")
    order = permutation(len(both), seed)
    first = max(1, len(both) // 5)
    notes.append(
        f"the validation file, shuffled with seed {seed}, is {first} validation and {len(both) - first} test texts"
    )
    return {**splits, "valid": both.take(order[:first]), "test": both.take(order[first:])}


def complete(splits: dict[str, Split], seed: int, notes: list[str]) -> dict[str, Split]:
    """Cut the splits that are missing off the training split, with a seed, and say so.

    Training rows whose text was cut off too (copies) are dropped, so that nothing of it stays in training.
    """
    missing = [name for name in SPLITS if name not in splits]
    if not missing:
        return splits
    train = splits["train"]
    size = min(MOST, max(1, len(train) // 10))
    if size * len(missing) >= len(train):
        raise UserError(
            f"{len(train)} training texts are too few to cut {' and '.join(missing)} from: "
            "give more, or give files for each split"
        )
    order = permutation(len(train), seed)
    made = dict(splits)
    taken: set[str] = set()
    for i, name in enumerate(missing):
        made[name] = train.take(order[i * size : (i + 1) * size])
        taken |= set(made[name].texts)
    rest = order[len(missing) * size :]
    kept = sorted(i for i in rest if train.texts[i] not in taken)
    if not kept:
        raise UserError(f"all {len(train)} training texts are copies of {len(taken)}: give different texts")
    made["train"] = train.take(kept)
    each = "each " if len(missing) > 1 else ""
    copies = f", {len(rest) - len(kept)} copies of them dropped" if len(kept) < len(rest) else ""
    notes.append(f"no file for {' and '.join(missing)}: {size} rows {each}cut off training with seed {seed}{copies}")
    return {name: made[name] for name in SPLITS}


def concatenate(parts: Sequence[Split]) -> Split:
    """The rows of several splits one after another. Labels of different corpora mean different things: dropped."""
    sources = [part.sources for part in parts]
    texts = [text for part in parts for text in part.texts]
    if any(s is None for s in sources):
        return Split(texts)
    return Split(texts, None, [source for s in sources for source in s or ()])

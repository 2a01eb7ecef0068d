"""Which rows are for training, validation and test, where the files do not say. Knows splits, not files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataset_utils.corpus import SPLITS, Split
from utils.errors import UserError

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

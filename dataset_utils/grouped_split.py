"""Cut missing splits from training texts by groups: rows that share a text or a source stay on one side.

The side of a group is a hash of its texts. So it stays where it is when rows are added, removed or moved: no text that
was held out is trained on later, and none that was trained on is held out. This module reads no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from dataset_utils.splits import Split
from utils.errors import UserError

SHARE = 0.1  # of the rows, for each split that is cut ...
FEWEST = 1200  # ... halved, as long as so many rows are left, so that an evaluation finds its 1,000 texts
_TRAIN, _SIDES = -1, {"valid": 0, "test": 1}


def hash_texts(texts: Sequence[str]) -> np.ndarray:
    """(n,) int64: a hash of each text, the same on every machine."""
    digests = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def held_out_share(num_rows: int) -> float:
    """Share of the rows that each missing split gets. It changes only where num_rows doubles."""
    return SHARE / 2 ** max(0, math.floor(math.log2(SHARE * num_rows / FEWEST))) if num_rows else SHARE


def group_rows(texts: np.ndarray, sources: np.ndarray | None) -> np.ndarray:
    """(n,) int64: a hash of the group of each row, given the hashes of its text and source.

    Rows with an equal text or source are in one group, and so are the rows of rows in it. The hash of a group is the
    smallest of its sources, so that another text of one of them changes nothing; without sources that of its text.
    """
    if sources is None:
        return texts
    root: dict[int, int] = {}  # of texts, and of sources, which have other keys

    def find(key: int) -> int:
        while (above := root.setdefault(key, key)) != key:
            root[key] = key = root[above]
        return key

    for text, source in zip(texts.tolist(), sources.tolist(), strict=True):
        root[find(text << 1)] = find(source << 1 | 1)
    roots = [find(source << 1 | 1) for source in sources.tolist()]
    smallest: dict[int, int] = {}
    for key, source in zip(roots, sources.tolist(), strict=True):
        smallest[key] = min(source, smallest.get(key, source))
    return np.fromiter((smallest[key] for key in roots), np.int64, len(roots))


def cut_by_groups(splits: dict[str, Split], missing: Sequence[str], seed: int, notes: list[str]) -> dict[str, Split]:
    """The splits with the missing ones cut from training, and a line in notes.

    Groups that share a text or a source with a split that is given, and those larger than the split to be cut, are not
    held out. Raises UserError if there are too few groups.
    """
    train = splits["train"]
    texts = hash_texts(train.texts)
    sources = None if train.sources is None else hash_texts(train.sources)
    groups, inverse, sizes = np.unique(group_rows(texts, sources), return_inverse=True, return_counts=True)
    what = "texts" if sources is None else "texts or sources"
    if len(groups) <= len(missing):
        many = f"all {len(train)} training texts are" if len(groups) == 1 else f"{len(train)} training texts are only"
        raise UserError(
            f"{many} copies of {len(groups)} {what}, too few to take {' and '.join(missing)} texts from: give "
            "different texts, or give a file for each split"
        )
    share = held_out_share(len(train))
    allowed = sizes <= max(1.0, share * len(train))
    given = _in_given_splits(splits, texts, sources)
    allowed[np.unique(inverse[given])] = False
    place = _uniform(groups, seed)
    side = _sides(place, sizes, allowed, [_SIDES[name] for name in missing], share)
    _fill_empty(side, place, sizes, allowed, [_TRAIN, *(_SIDES[name] for name in missing)])
    of_row = side[inverse]
    made = {name: train.select(np.flatnonzero(of_row == _SIDES[name]).tolist()) for name in missing}
    rest = train.select(np.flatnonzero(of_row == _TRAIN).tolist())
    taken = " and ".join(f"{len(made[name]):,} {name}" for name in missing)
    notes.append(
        f"no file for {' and '.join(missing)}: {taken} rows taken from training by a hash of {what}, so that equal "
        f"ones stay on one side, also when lines are added; {len(rest):,} are left"
    )
    return {**splits, **made, "train": rest}


def _in_given_splits(splits: dict[str, Split], texts: np.ndarray, sources: np.ndarray | None) -> np.ndarray:
    """(n,) bool: whether the text or the source of a training row is also in another split."""
    found = np.zeros(len(texts), bool)
    for name, split in splits.items():
        if name != "train":
            found |= np.isin(texts, hash_texts(split.texts))
            if sources is not None and split.sources is not None:
                found |= np.isin(sources, hash_texts(split.sources))
    return found


def _uniform(groups: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each group, which depends on its hash and the seed alone."""
    key = f"held out {seed}".encode()
    digests = b"".join(blake2b(group, digest_size=8, key=key).digest() for group in groups.astype("<i8"))
    return np.frombuffer(digests, "<u8") / 2**64


def _sides(
    place: np.ndarray, sizes: np.ndarray, allowed: np.ndarray, wanted: Sequence[int], share: float
) -> np.ndarray:
    """(groups,) the side of each group. wanted: the sides that are cut.

    share: share of all rows for each side. If the groups that may be held out are few, a larger share of them is.
    """
    of_allowed = share
    while of_allowed * sizes[allowed].sum() < share * sizes.sum() / 2 and of_allowed <= 0.125:
        of_allowed *= 2
    side = np.floor(place / of_allowed).astype(np.int64)
    side[~np.isin(side, wanted) | ~allowed] = _TRAIN
    return side


def _fill_empty(side: np.ndarray, place: np.ndarray, sizes: np.ndarray, allowed: np.ndarray, needed: list[int]) -> None:
    """Give each needed side without rows a small group of the side with the most groups, in place."""
    for empty in needed:
        if (side == empty).any():
            continue
        others = np.flatnonzero(side == max(needed, key=lambda s: (side == s).sum()))
        refused = allowed[others] if empty == _TRAIN else ~allowed[others]
        side[others[np.lexsort((place[others], sizes[others], refused))[0]]] = empty

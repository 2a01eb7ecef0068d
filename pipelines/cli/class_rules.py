"""What an evaluation without --class_id samples: all classes jointly and, where that is possible, each separately."""

from __future__ import annotations

from collections.abc import Sequence

from dataset_utils.corpus import Corpus

MOST_UNASKED = 20  # classes of which each is sampled separately: the samples of each are compared with all classes


def why_not_each_class(corpus: Corpus, splits: Sequence[str]) -> str | None:
    """Why no class is sampled separately; None: each is. splits: those that hold the references."""
    if corpus.num_classes > MOST_UNASKED:
        return (
            f"{corpus.num_classes} classes, more than {MOST_UNASKED}, would be compared with each other (--class_id "
            "NAME evaluates one, --class_id all each)"
        )
    lacking = ((split, missing_class(corpus, split)) for split in splits)
    return next((f"the {split} split has no text of class {name}" for split, name in lacking if name is not None), None)


def missing_class(corpus: Corpus, split: str) -> str | None:
    """The first class of which a split has no text; None: it has some of each."""
    present = set(corpus.splits[split].labels or ())
    return next((name for c, name in enumerate(corpus.class_names) if c not in present), None)

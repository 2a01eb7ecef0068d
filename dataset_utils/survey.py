"""What a corpus looks like to a tokenizer: lengths, what is cut, what is unknown, what comes twice.

Worth a look before training: a share of truncated or unknown tokens is a ceiling on every reconstruction.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from dataset_utils.batching import tokenize
from dataset_utils.corpus import Corpus

PERCENTILES = (50, 90, 95, 99, 100)
_MEASURED = 50_000  # texts of a split that are tokenized, evenly spaced
_UNCUT = 1 << 30  # tokens


def survey(corpus: Corpus, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Figures by split: rows, tokens (percentiles, special tokens included), shares in [0, 1].

    measured: texts tokenized. truncated: share of texts longer than max_length. unknown: share of tokens that the
    tokenizer does not know (special ones not counted). duplicates: rows whose text came before in the split.
    in_training: rows whose text is in the training split. labels: rows per class.
    """
    training = set(corpus.train.texts)
    special = tokenizer.num_special_tokens_to_add(pair=False)
    found: dict[str, Any] = {"name": corpus.name, "max_length": max_length, "notes": list(corpus.notes), "splits": {}}
    for name, split in corpus.splits.items():
        texts = split.texts[:: max(1, -(-len(split) // _MEASURED))]
        table = tokenize(tokenizer, texts, _UNCUT)
        known = int(table.lengths.sum()) - special * len(table)
        unknown = (
            0
            if tokenizer.unk_token_id is None
            else int(
                ((table.ids == tokenizer.unk_token_id) & (np.arange(table.ids.shape[1]) < table.lengths[:, None])).sum()
            )
        )
        figures: dict[str, Any] = {
            "rows": len(split),
            "measured": len(table),
            "tokens": {str(p): int(np.percentile(table.lengths, p, method="higher")) for p in PERCENTILES},
            "truncated": float((table.lengths > max_length).mean()),
            "unknown": unknown / known if known else 0.0,
            "duplicates": 1 - len(set(split.texts)) / len(split),
        }
        if name != "train":
            figures["in_training"] = sum(text in training for text in split.texts) / len(split)
        if split.labels is not None:
            rows = Counter(split.labels)
            figures["labels"] = {label: rows[i] for i, label in enumerate(corpus.class_names)}
        found["splits"][name] = figures
    return found


def print_survey(figures: dict[str, Any]) -> None:
    """The survey as a table of a line per split, the notes below."""
    print(f"{figures['name']}, texts of at most {figures['max_length']} tokens")
    heads = [f"p{p}" if p < 100 else "max" for p in PERCENTILES]
    print(
        f"{'split':<6}{'rows':>10}"
        + "".join(f"{head:>6}" for head in heads)
        + f"{'truncated':>11}{'unknown':>9}{'twice':>8}{'in train':>10}"
    )
    for name, s in figures["splits"].items():
        inside = f"{s['in_training']:>10.2%}" if "in_training" in s else f"{'':>10}"
        print(
            f"{name:<6}{s['rows']:>10,}"
            + "".join(f"{s['tokens'][str(p)]:>6}" for p in PERCENTILES)
            + f"{s['truncated']:>11.2%}{s['unknown']:>9.2%}{s['duplicates']:>8.2%}{inside}"
        )
    for name, s in figures["splits"].items():
        if "labels" in s:
            print(f"{name} rows by class: " + ", ".join(f"{label} {n:,}" for label, n in s["labels"].items()))
    for note in figures["notes"]:
        print(f"note: {note}")

"""Statistics of a corpus under a tokenizer, and one-line warnings about bad values.

Numbers of rows, lengths in tokens, shares of truncated texts, unknown tokens and duplicates, and class frequencies.
Truncated texts and unknown tokens limit every reconstruction, and test texts that are also in the training split raise
every score. Each training program prints these statistics and saves them as survey.json; `python -m
dataset_utils.inspect` prints them without a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_utils.batching import token_counts
from dataset_utils.corpus import Corpus
from dataset_utils.round_trip import format_round_trips, round_trip
from dataset_utils.splits import Split
from dataset_utils.text_stats import MAX_MEASURED, PERCENTILES, evenly_spaced, percentiles
from utils.terminal import printable

OTHER_MODEL = "use a language model whose vocabulary contains them"


def compute_corpus_stats(
    corpus: Corpus,
    tokenizer: Any,
    max_length: int | None,
    source_tokenizer: Any = None,
    max_source_length: int | None = None,
    unknown_hint: str = OTHER_MODEL,
) -> dict[str, Any]:
    """Statistics by split: rows, tokens (percentiles, special tokens included), shares in [0, 1].

    measured: texts that were tokenized. truncated: share of texts longer than max_length. unknown: share of unknown
    tokens (special tokens not counted). duplicates: share of rows whose source and text occurred earlier in the split.
    in_training: share of rows that are also in the training split. texts_in_training, texts_in_valid: share of texts
    that are also there, whatever their sources. labels: rows per class. source: the same for the sources, with
    source_tokenizer (None: tokenizer) and max_source_length (None: not truncated).

    tokenizer: None leaves out what is counted in tokens. max_length: None means that nothing is truncated.
    unknown_hint: what helps against unknown tokens, for the warning about them.
    """
    training = np.unique(_hashes(corpus.train))
    texts: dict[str, np.ndarray] = {}  # hashes of earlier splits
    sources: dict[str, np.ndarray] = {}
    splits = {}
    for name, split in corpus.splits.items():
        rows = _hashes(split)
        figures: dict[str, Any] = {"rows": len(split), **_lengths(tokenizer, split.texts, max_length)}
        figures["duplicates"] = 1 - len(training if name == "train" else np.unique(rows)) / len(split)
        if name != "train":
            figures["in_training"] = float(np.isin(rows, training).mean())
        figures |= _shared(name, split.texts, texts)
        if split.labels is not None:
            of_class = Counter(split.labels)
            figures["labels"] = {label: of_class[i] for i, label in enumerate(corpus.class_names)}
        if split.sources is not None:
            figures["source"] = _lengths(source_tokenizer or tokenizer, split.sources, max_source_length)
            figures["source"] |= _shared(name, split.sources, sources)
        splits[name] = figures
    found = {
        "name": corpus.name, "max_length": max_length, "max_source_length": max_source_length,
        "notes": list(corpus.notes), "splits": splits,
    }  # fmt: skip
    return {**found, "warnings": find_warnings(found, unknown_hint)}


def _hashes(split: Split) -> np.ndarray:
    """(n,) hash of source and text of each row: eight bytes, where the row itself may take thousands."""
    rows = split.texts if split.sources is None else zip(split.sources, split.texts, strict=True)
    return np.fromiter(map(hash, rows), np.int64, len(split))


def _shared(name: str, texts: Sequence[str], earlier: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of different texts, and shares that are also in earlier splits, to which this one is added."""
    found = np.fromiter(map(hash, texts), np.int64, len(texts))
    shares = {"different": len(np.unique(found)) / len(found)}
    for other, key in (("train", "texts_in_training"), ("valid", "texts_in_valid")):
        if other in earlier:
            shares[key] = float(np.isin(found, earlier[other]).mean())
    earlier[name] = found
    return shares


def _lengths(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    counts, unknown = token_counts(tokenizer, evenly_spaced(texts, MAX_MEASURED))
    known = int(counts.sum()) - tokenizer.num_special_tokens_to_add(pair=False) * len(counts)
    return {
        "measured": len(counts),
        "tokens": percentiles(counts),
        "truncated": 0.0 if max_length is None else float((counts > max_length).mean()),
        "unknown": unknown / known if known else 0.0,
        "round_trip": round_trip(tokenizer, texts).as_dict(),
    }


# ------------------------------------------------------------------------------------------------ warnings


@dataclass(frozen=True)
class Rule:
    """A warning about a statistic; `message` is formatted with the split, the value and other statistics."""

    value: Callable[[dict[str, Any]], float | None]  # from the statistics of a split; None: not available
    bad: Callable[[float], bool]
    message: str
    splits: tuple[str, ...] = ("train", "valid", "test")


def _of_source(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda s: s["source"].get(name) if "source" in s else None


def _smallest_class(s: dict[str, Any]) -> float | None:
    """Share of the rarest class, relative to a uniform distribution."""
    return min(s["labels"].values()) * len(s["labels"]) / s["rows"] if len(s.get("labels", ())) > 1 else None


def _num_classes_present(s: dict[str, Any]) -> float | None:
    return sum(n > 0 for n in s["labels"].values()) if "labels" in s else None


RULES = (
    Rule(lambda s: s.get("truncated"), lambda x: x > 0.05,
         "{value:.1%} of the {split} texts are longer than {max_length} tokens and are truncated: raise --max_seq_len "
         "(95 % of them have {p95} or fewer)"),
    Rule(lambda s: s.get("unknown"), lambda x: x > 0.01,
         "{value:.1%} of the tokens of {split} are unknown to the tokenizer and cannot be generated: "
         "{unknown_hint}"),
    Rule(_of_source("truncated"), lambda x: x > 0.05,
         "{value:.1%} of the sources of {split} are longer than {max_source_length} tokens and are truncated (in a "
         "diffusion run raise --max_source_len)"),
    Rule(_of_source("unknown"), lambda x: x > 0.01,
         "{value:.1%} of the tokens in the sources of {split} are unknown to the tokenizer: {unknown_hint}"),
    Rule(lambda s: s["duplicates"], lambda x: x > 0.10,
         "{value:.1%} of the {split} rows are copies of earlier rows: a model is likely to memorize these",
         splits=("train",)),
    Rule(lambda s: s.get("in_training"), lambda x: x > 0.01,
         "{value:.1%} of the {split} rows are also in the training split, which raises every score on {split}: remove "
         "them from one of the two"),
    Rule(_of_source("texts_in_training"), lambda x: x > 0.01,
         "{value:.1%} of the sources of {split} are also in the training split, so that scores on {split} say little "
         "about new sources: split by source (without a {split} file, it is cut that way)"),
    Rule(lambda s: s.get("texts_in_valid") if "source" not in s else s["source"].get("texts_in_valid"),
         lambda x: x > 0.01,
         "{value:.1%} of the {split} rows are also in the validation split, by which checkpoints are chosen",
         splits=("test",)),
    Rule(lambda s: s["rows"], lambda x: x < 1000,
         "only {value:.0f} training texts: the model may memorize them", splits=("train",)),
    Rule(lambda s: s["rows"], lambda x: x < 100,
         "only {value:.0f} {split} texts: scores on so few are mostly noise", splits=("valid", "test")),
    Rule(_num_classes_present, lambda x: x == 1,
         "all {split} rows have the same class: check the label column and how the file was split"),
    Rule(_smallest_class, lambda x: x < 0.1,
         "the rarest class of {split} has {fewest} of {rows:,} rows ({rarest}): its scores will be uncertain"),
)  # fmt: skip


def find_warnings(figures: dict[str, Any], unknown_hint: str = OTHER_MODEL) -> list[str]:
    """One line for each rule that a split violates. unknown_hint: as in compute_corpus_stats."""
    lines = []
    for rule in RULES:
        for name, s in figures["splits"].items():
            value = rule.value(s) if name in rule.splits else None
            if value is None or not rule.bad(value):
                continue
            rarest, fewest = min(s.get("labels", {"": 0}).items(), key=lambda item: item[1])
            of_figures = {k: figures[k] for k in ("max_length", "max_source_length")}
            lines.append(
                rule.message.format(split=name, value=value, rows=s["rows"], rarest=rarest, fewest=fewest,
                                 p95=s["tokens"]["95"] if "tokens" in s else None, unknown_hint=unknown_hint,
                                 **of_figures)
            )  # fmt: skip
    return lines


# ------------------------------------------------------------------------------------------------ text


def format_table(figures: dict[str, Any]) -> str:
    """The statistics as a table: a line per split (and one for its sources), then classes, then warnings."""
    in_tokens = all("tokens" in s for s in figures["splits"].values())
    heads = [f"p{p}" if p < 100 else "max" for p in PERCENTILES]
    token_heads = "".join(f"{head:>7}" for head in heads) + f"{'truncated':>11}{'unknown':>9}" if in_tokens else ""
    lines = [
        figures["name"] + (f", in texts of at most {figures['max_length']} tokens" if in_tokens else ""),
        f"{'split':<8}{'rows':>11}{token_heads}{'twice':>8}{'in train':>10}",
    ]
    sampled = False
    for name, s in figures["splits"].items():
        lines.append(f"{name:<8}{s['rows']:>11,}{_columns(s)}{s['duplicates']:>8.2%}{_in_training(s)}")
        if "source" in s:
            source = s["source"]
            lines.append(
                f"{'  source':<8}{'':>11}{_columns(source)}{1 - source['different']:>8.2%}{_in_training(source)}"
            )
        sampled |= s.get("measured", s["rows"]) < s["rows"]
    if sampled:
        lines.append(f"lengths are of every n-th text, at most {MAX_MEASURED:,} of a split")
    for name, s in figures["splits"].items():
        if "labels" in s:
            most = sorted(s["labels"].items(), key=lambda item: -item[1])
            rest = f" and {len(most) - 12} more classes" if len(most) > 12 else ""
            lines.append(f"{name} rows by class: " + ", ".join(f"{label} {n:,}" for label, n in most[:12]) + rest)
    return printable("\n".join([*lines, *(f"warning: {line}" for line in figures["warnings"])]))


def round_trip_lines(figures: dict[str, Any]) -> list[str]:
    """Lines about the texts and sources that the tokenizer brings back unchanged; see round_trip.format_round_trips."""
    found = {}
    for name, s in figures["splits"].items():
        found[name] = s["round_trip"]
        if "source" in s:
            found[f"sources of {name}"] = s["source"]["round_trip"]
    return format_round_trips(found)


def _columns(s: dict[str, Any]) -> str:
    if "tokens" not in s:
        return ""
    return "".join(f"{s['tokens'][str(p)]:>7}" for p in PERCENTILES) + f"{s['truncated']:>11.2%}{s['unknown']:>9.2%}"


def _in_training(s: dict[str, Any]) -> str:
    return f"{s['texts_in_training']:>10.2%}" if "texts_in_training" in s else ""

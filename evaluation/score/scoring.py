"""All metrics of texts of any system, under the names and the protocol of the evaluations of runs.

Files and the command line are in `__main__`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation.encoders import SentenceEncoder
from evaluation.memorization import NgramIndex
from evaluation.metrics import SAMPLES, MetricContext, compute_metrics
from evaluation.overlap import Reference, alternatives, one_of_each
from evaluation.protocols import Result, compute_mauves, evaluate_pairs, evaluate_texts, over_seeds, reference_metrics
from evaluation.scorers import Scorer

SEEDS_FROM = 42  # of the order of references: one seed per file of samples, as in an evaluation on the test split
# Beginnings of the keys of numbers that need several candidates.
SEVERAL_CANDIDATES = ("mbr_", "oracle_", "diffuseq_self_bleu", "div4", "distinct_candidates")


@dataclass(frozen=True)
class Judges:
    """What scores texts besides counting. An absent judge leaves its metrics out."""

    scorer: Scorer | None = None
    encoder: SentenceEncoder | None = None
    training: Sequence[str] = ()  # training texts; without them there is no memorization
    split: str = "val"  # of the references, in metric keys: val or test
    pair_options: Mapping[str, Any] = field(default_factory=dict)  # keywords of evaluate_pairs


def score_sets(samples: Sequence[Sequence[str]], references: Sequence[Sequence[str]], judges: Judges) -> Result:
    """Score sets of samples (of several seeds) against real texts: a flat result, or mean and deviation of several.

    references: one set for all, or one per set of samples. Where there are more of them than samples, as many are drawn
    at random: a corpus may be sorted. Texts beyond the size of the other side take no part in MAUVE and linear_auc.
    """
    index = NgramIndex(judges.training) if judges.training else None
    results = []
    for i, texts in enumerate(samples):
        real = draw_texts(_of(references, i), len(texts), SEEDS_FROM + i)
        train = draw_texts(judges.training, 2 * len(real), SEEDS_FROM + i)
        sets = {judges.split: real} | ({"train": train[: len(real)]} if train else {})
        result = evaluate_texts(texts, sets, index, judges.scorer, encoder=judges.encoder)
        result["protocol"] |= {"references": len(real), "seed": SEEDS_FROM + i}
        results.append(result | _of_real_texts(real, train, index, judges))
    return _merged(results)


def score_pairs(
    candidates: Sequence[Sequence[Sequence[str]]],
    references: Sequence[Sequence[Reference]],
    judges: Judges,
    sources: Sequence[str],
) -> Result:
    """Score samples for sources, each against the references of its source; otherwise as score_sets.

    candidates: for each set (examples, K). With K = 1 the numbers of choosing among candidates are left out. sources:
    one a row; rows of one source share their references, as in an evaluation of a run.
    """
    index = NgramIndex(judges.training) if judges.training else None
    results = []
    for i, rows in enumerate(candidates):
        targets, seed = _merge_references(_of(references, i), sources), SEEDS_FROM + i
        result = evaluate_pairs(rows, targets, index, judges.scorer, **judges.pair_options, sources=sources, seed=seed)
        if len(rows[0]) == 1:
            result = {key: value for key, value in result.items() if not key.startswith(SEVERAL_CANDIDATES)}
        first, real = [row[0] for row in rows], one_of_each(targets, seed)
        mauves = compute_mauves({judges.split: (first, real)}, judges.scorer, judges.encoder)
        protocol = result.pop("protocol") | mauves.encoder_protocol
        for score in mauves.of_scorer:
            protocol |= {"mauve": score.protocol(), "mauve_few_samples": score.mauve_few_samples}
        results.append(result | mauves.numbers | _of_real_texts(real, (), index, judges) | {"protocol": protocol})
    return _merged(results)


def _of_real_texts(real: Sequence[str], train: Sequence[str], index: NgramIndex | None, judges: Judges) -> Result:
    """Return the metrics of the references themselves, which samples should reach; without a protocol."""
    if len(train) >= len(real):
        result = reference_metrics(real, train, judges.scorer, split=judges.split, index=index, encoder=judges.encoder)
        result.pop("protocol")
        return result
    numbers, _ = compute_metrics(MetricContext(real, scorer=judges.scorer, training=index), SAMPLES)
    return {f"reference/{judges.split}_{key}": value for key, value in numbers.items()}


def _merge_references(references: Sequence[Reference], sources: Sequence[str]) -> list[list[str]]:
    """Give every row all references of its source, each once."""
    of_source: dict[str, dict[str, None]] = {}
    for source, reference in zip(sources, references, strict=True):
        of_source.setdefault(source, {}).update(dict.fromkeys(alternatives(reference)))
    return [list(of_source[source]) for source in sources]


def _of(references: Sequence[Any], i: int) -> Any:
    return references[i] if len(references) > 1 else references[0]


def draw_texts(texts: Sequence[str], n: int, seed: int) -> list[str]:
    """Return n texts drawn without replacement, in random order; all of them, shuffled, if there are no more."""
    return random.Random(f"{seed}, references").sample(list(texts), min(n, len(texts)))


def _merged(results: Sequence[Result]) -> Result:
    return results[0] if len(results) == 1 else over_seeds(results)

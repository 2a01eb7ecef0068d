"""How the scores of a run were measured, and where two runs were measured differently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.report.run_files import Run

# What a score depends on beside the samples. Other entries say how the samples were drawn, which runs may compare.
MEASURING = (
    "n", "split", "scorer", "fingerprint", "max_length", "mauve", "mauve_encoder", "buckets", "words", "spelling",
    "classifier", "corpus", "bleu_tokenizer", "bertscore_model", "mbr_utility", "missing_packages", "skipped",
    "num_references", "nearest", "classes", "max_seq_len", "shuffle_seed", "held_out", "similarity", "compared_texts",
)  # fmt: skip
IGNORED = ("versions", "seed", "note", "comparable", "unchanged_by_tokenizer", "measured_round_trips", "mbr_ties",
           "available", "texts_together", "mauve_few_samples", "step")  # fmt: skip


@dataclass(frozen=True)
class Difference:
    what: str
    values: list[str]  # of each run


@dataclass(frozen=True)
class Protocol:
    """The protocol of the evaluation of one run on one split."""

    run: str
    split: str
    seeds: list[int]
    entries: list[tuple[str, str]]
    notes: list[str]


def protocols(runs: Sequence[Run]) -> list[Protocol]:
    from evaluation.report.results import notes

    made = []
    for run in runs:
        evaluations = run.evaluations or {"training": run.training_metrics, "validation": run.validation}
        for split, metrics in evaluations.items():
            if not metrics:
                continue
            parts = _parts(metrics)
            seeds = sorted({part["seed"] for part in parts if isinstance(part.get("seed"), int)})
            entries = [(key, _short(value)) for key, value in (parts[0] if parts else {}).items() if key != "seed"]
            made.append(Protocol(run.name, split, seeds, entries, _notes(metrics, notes)))
    return made


def differences(runs: Sequence[Run]) -> tuple[list[Difference], list[Difference]]:
    """Where the runs were measured differently, and where they were sampled differently."""
    if len(runs) < 2:
        return [], []
    measured: list[Difference] = []
    sampled: list[Difference] = []
    results = [_main(run) for run in runs]
    splits = [split for split, _ in results]
    if len(set(splits)) > 1:
        measured.append(Difference("split", [s or "not evaluated" for s in splits]))
    held_out = [_digest(run, split) for run, split in zip(runs, splits, strict=True)]
    if len(set(held_out)) > 1:
        measured.append(Difference("digest of the real texts", [d[:12] or "not recorded" for d in held_out]))
    parts = [_parts(metrics) for _, metrics in results]
    seeds = [sorted({p["seed"] for p in part if isinstance(p.get("seed"), int)}) for part in parts]
    if len({str(s) for s in seeds}) > 1:
        measured.append(Difference("seeds", [", ".join(map(str, s)) or "none" for s in seeds]))
    firsts = [part[0] if part else {} for part in parts]
    for key in dict.fromkeys(key for first in firsts for key in first):
        values = [json.dumps(first.get(key), sort_keys=True) for first in firsts]
        if key in IGNORED or len(set(values)) == 1:
            continue
        found = Difference(key, [_short(first.get(key)) for first in firsts])
        (measured if key in MEASURING else sampled).append(found)
    return measured, sampled


def settings_that_differ(runs: Sequence[Run]) -> list[Difference]:
    """Flags whose values differ between the runs."""
    skipped = {"corpus", "models_relative", "package_versions"}
    keys = dict.fromkeys(key for run in runs for key in run.args if key not in skipped)
    return [
        Difference(key, [_short(run.args.get(key)) for run in runs])
        for key in keys
        if len({json.dumps(run.args.get(key), sort_keys=True) for run in runs}) > 1
    ]


def _main(run: Run) -> tuple[str, Mapping[str, Any]]:
    """The evaluation whose protocol counts: of the test split if there is one."""
    if run.evaluations:
        split = next(iter(run.evaluations))
        return split, run.evaluations[split]
    return "", run.training_metrics or run.validation


def _digest(run: Run, split: str) -> str:
    found: Any = run.args
    for key in ("corpus", "splits", split or "valid", "texts"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return str(found or "")


def _parts(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    protocol = metrics.get("protocol") or {}
    parts = protocol.get("runs", [protocol]) if isinstance(protocol, Mapping) else []
    return [part for part in parts if isinstance(part, Mapping) and part]


def _notes(metrics: Mapping[str, Any], notes: Any) -> list[str]:
    try:
        return list(notes(metrics))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError):  # a protocol of another release
        return []


def _short(value: Any) -> str:
    """A value as text: entries of a dictionary one after the other."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)

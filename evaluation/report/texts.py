"""The texts of a report, prepared for its page: rows of the sample browser, pairs, and steps of the player."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

from evaluation.report.distributions import num_words, repetition
from evaluation.report.run_files import Nearest, PairSet, Run, SampleSet, Trajectory

MAX_ROWS = 1000  # of samples on a page, and of pairs; divided evenly among the sets
Parts = list[tuple[str, bool]]  # a text in pieces; True: marked


@dataclass(frozen=True)
class SampleRow:
    number: int  # 1 for the first sample of its set
    group: str  # run and set
    text: Parts
    words: int
    repetition: float
    nearest: Nearest | None
    nearest_text: Parts


@dataclass(frozen=True)
class PairRow:
    number: int
    group: str
    source: str
    references: list[str]
    sample: str
    chosen: str
    candidates: list[str]
    nearest: Nearest | None


@dataclass(frozen=True)
class Browser:
    """Rows of texts, and how many there are beside them."""

    samples: list[SampleRow]
    pairs: list[PairRow]
    groups: list[str]
    left_out: int

    @property
    def has_nearest(self) -> bool:
        return any(row.nearest for row in self.samples) or any(row.nearest for row in self.pairs)


@dataclass(frozen=True)
class Step:
    step: int
    t: float
    texts: list[Parts]  # words that the last step keeps are marked


@dataclass(frozen=True)
class Player:
    run: str
    steps: list[Step]
    of: int  # steps of the sampler
    sources: list[str]
    classes: list[str]


def browser(runs: Sequence[Run]) -> Browser:
    """The first samples and pairs of every set."""
    samples = [(_group(run, s, len(runs) > 1), s) for run in runs for s in run.samples]
    pairs = [(_group(run, p, len(runs) > 1), p) for run in runs for p in run.pairs]
    of_samples, of_pairs = (MAX_ROWS // max(len(sets), 1) for sets in (samples, pairs))
    sample_rows = [row for group, s in samples for row in _sample_rows(group, s, of_samples)]
    pair_rows = [row for group, p in pairs for row in _pair_rows(group, p, of_pairs)]
    total = sum(len(s.texts) for _, s in samples) + sum(len(p.records) for _, p in pairs)
    groups = list(dict.fromkeys(group for group, _ in (*samples, *pairs)))
    return Browser(sample_rows, pair_rows, groups, total - len(sample_rows) - len(pair_rows))


def players(runs: Sequence[Run]) -> list[Player]:
    return [_player(run.name, run.trajectory) for run in runs if run.trajectory is not None]


def mark_run(text: str, shared: str) -> Parts:
    """Split a text where the words of `shared` stand in it one after the other, whatever is between them."""
    found = re.search(r"\W+".join(map(re.escape, shared.split())), text, re.IGNORECASE) if shared.split() else None
    if found is None:
        return [(text, False)]
    start, end = found.span()
    return [part for part in ((text[:start], False), (text[start:end], True), (text[end:], False)) if part[0]]


def mark_kept(text: str, final: str) -> Parts:
    """Mark the words of a text that the final text keeps, in order."""
    words, last = text.split(), final.split()
    kept = [False] * len(words)
    for block in SequenceMatcher(None, words, last, autojunk=False).get_matching_blocks():
        kept[block.a : block.a + block.size] = [True] * block.size
    return [
        (" ".join(word for word, _ in group) + " ", marked)
        for marked, group in groupby(zip(words, kept, strict=True), key=lambda pair: pair[1])
    ]


def _group(run: Run, texts: SampleSet | PairSet, several: bool) -> str:
    seed = "during training" if texts.seed is None else f"{texts.split}, seed {texts.seed}"
    label = run.describe(texts.label)
    return f"{run.name}: {label}, {seed}" if several else f"{label}, {seed}"


def _sample_rows(group: str, samples: SampleSet, most: int) -> Iterable[SampleRow]:
    for i, text in enumerate(samples.texts[:most]):
        nearest = samples.nearest[i] if i < len(samples.nearest) else None
        shared = nearest.shared if nearest else ""
        yield SampleRow(
            i + 1,
            group,
            mark_run(text, shared),
            num_words(text),
            repetition(text),
            nearest,
            mark_run(nearest.text, shared) if nearest else [],
        )


def _pair_rows(group: str, pairs: PairSet, most: int) -> Iterable[PairRow]:
    for i, record in enumerate(pairs.records[:most]):
        yield PairRow(
            i + 1,
            group,
            record["source"],
            record.get("references") or [record["reference"]],
            record["sample"],
            record["chosen"],
            record.get("candidates") or [],
            pairs.nearest[i] if i < len(pairs.nearest) else None,
        )


def _player(name: str, trajectory: Trajectory) -> Player:
    final = trajectory.views[-1][2]
    steps = [
        Step(step, t, [mark_kept(text, last) for text, last in zip(texts, final, strict=True)])
        for step, t, texts in trajectory.views
    ]
    return Player(name, steps, trajectory.steps, trajectory.sources, trajectory.classes)

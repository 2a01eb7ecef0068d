"""The files of a run folder that its report shows, read into a typed record.

Every file but args.json may be absent: its section of the page says so. A file that is damaged is a UserError, which
names the file and what to do. This module knows the files alone, and nothing of the programs that write them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.plots import read_curves
from evaluation.report.json_files import (
    ADVICE,
    check_classes,
    check_metrics,
    check_nearest,
    check_norms,
    check_pair,
    check_parameters,
    check_text,
    check_trajectory,
    read_list,
    read_object,
    read_optional_object,
    read_text,
)
from utils.errors import UserError

Metrics = dict[str, Any]
Curves = dict[str, list[tuple[float, float]]]
_STEM = re.compile(r"eval-(?P<split>valid|test)-seed(?P<seed>\d+)-(?P<label>.+)-(?P<kind>samples|pairs)\.json")
_CLASS_LABEL = re.compile(r"cond(\d+)_(.+)")
_TRAINING_SAMPLES = re.compile(r"(?P<label>.+)-(?P<kind>sample|pairs)-(?P<milestone>\d+)\.(txt|json)")


@dataclass(frozen=True)
class Nearest:
    """What stands nearest to a sample in the training texts."""

    text: str
    row: int | None
    similarity: float | None  # in [0, 1]
    shared: str  # the longest run of words that occurs in any training text
    shared_words: int | None


@dataclass(frozen=True)
class SampleSet:
    """Samples without a source: those of one split, seed and way of decoding."""

    split: str
    seed: int | None  # None: written during training
    label: str  # class prefix and decoding strategy, as in file names
    texts: list[str]
    nearest: list[Nearest | None] = field(default_factory=list)  # the first may be shorter than texts
    references: list[str] = field(default_factory=list)  # the real texts that the samples were compared with


@dataclass(frozen=True)
class PairSet:
    """Samples of sequence-to-sequence runs, with their sources and references."""

    split: str
    seed: int | None
    label: str
    records: list[dict[str, Any]]  # source, references, sample, chosen, candidates
    nearest: list[Nearest | None] = field(default_factory=list)


@dataclass(frozen=True)
class Trajectory:
    """Texts while they are denoised."""

    steps: int  # of the sampler
    views: list[tuple[int, float, list[str]]]  # steps done, time in [0, 1], a text for each sample
    sources: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path
    name: str
    args: dict[str, Any]
    curves: Curves
    evaluations: dict[str, Metrics]  # split -> metrics with their protocol
    training_metrics: Metrics  # of the last sampling during training
    validation: Metrics  # of an autoencoder or a language model: reconstruction
    samples: list[SampleSet]
    pairs: list[PairSet]
    classes: dict[str, dict[str, Any]]  # split -> matrices
    trajectory: Trajectory | None
    parameters: dict[str, dict[str, int]]  # part -> total, trained
    corpus: dict[str, Any]  # statistics by split
    latent_norms: dict[str, Any]

    @property
    def sets(self) -> list[SampleSet | PairSet]:
        """Samples without and with a source."""
        return [*self.samples, *self.pairs]

    def describe(self, label: str) -> str:
        """The label of a set of texts with the name of its class: cond0_greedy is "class sports, greedy"."""
        match, names = _CLASS_LABEL.fullmatch(label), self.args.get("class_names")
        if match is None:
            return label
        number = int(match[1])
        name = names[number] if isinstance(names, list) and number < len(names) else number
        return f"class {name}, {match[2]}"

    @property
    def is_evaluated(self) -> bool:
        return bool(self.evaluations)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, and give each a name that differs from the others."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"{folder} is named twice: name each run once")
        seen[folder.resolve()] = folder
    return [read_run(folder, name) for folder, name in zip(folders, _names(list(seen)), strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Read the files of one run. Raises UserError if the folder is no run, or if a file is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the folder of a run")
    if not (folder / "args.json").is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/args.json"))
        advice = f": name one of {', '.join(str(folder / part) for part in inner[:4])}" if inner else ""
        raise UserError(f"{folder} is no run folder: it holds no args.json{advice}")
    evaluation = folder / "evaluation"
    norms = next((p for p in (evaluation / "latent_norms.json", folder / "latent_norms.json") if p.is_file()), None)
    shown = sorted((folder / "samples").glob("*.trajectory.json"), key=lambda file: file.stat().st_mtime)
    places = (evaluation / "trajectory.json", folder / "trajectory.json", *reversed(shown))
    path = next((p for p in places if p.is_file()), None)
    samples, pairs = _read_sets(evaluation)
    if not samples and not pairs:
        samples, pairs = _read_training_sets(folder)
    return Run(
        folder,
        name,
        args=read_object(folder / "args.json"),
        curves=_read_curves(folder / "metrics.jsonl"),
        evaluations={
            split: read_object(evaluation / f"eval-{split}.json", check_metrics)
            for split in ("test", "valid")
            if (evaluation / f"eval-{split}.json").is_file()
        },
        training_metrics=read_optional_object(folder / "metrics.json", check_metrics),
        validation=read_optional_object(folder / "validation.json", check_metrics),
        samples=samples,
        pairs=pairs,
        classes={
            split: read_object(evaluation / f"eval-{split}-classes.json", check_classes)
            for split in ("test", "valid")
            if (evaluation / f"eval-{split}-classes.json").is_file()
        },
        trajectory=None if path is None else _trajectory(path),
        parameters=read_optional_object(folder / "parameters.json", check_parameters).get("parts", {}),
        corpus=read_optional_object(folder / "survey.json"),
        latent_norms={} if norms is None else read_object(norms, check_norms),
    )


# ---------------------------------------------------------------------------------------------------------- samples


def _read_sets(folder: Path) -> tuple[list[SampleSet], list[PairSet]]:
    """The samples of an evaluation: of the test split if there are any, since the metrics of it are final."""
    samples, pairs = [], []
    found = [(match, path) for path in sorted(folder.glob("eval-*.json")) if (match := _STEM.fullmatch(path.name))]
    split = "test" if any(match["split"] == "test" for match, _ in found) else "valid"
    last = folder / f"eval-{split}-sets.json"  # what the last evaluation wrote; an older release wrote no such list
    written = read_list(last, check_text) if last.is_file() else None
    for match, path in found:
        is_last = written is None or f"seed{match['seed']}-{match['label']}" in written
        if match["split"] != split or not is_last:
            continue
        stem = path.name.removesuffix(f"-{match['kind']}.json")
        nearest = _nearest(folder / f"{stem}-nearest.json")
        key = (match["split"], int(match["seed"]), match["label"])
        if match["kind"] == "pairs":
            pairs.append(PairSet(*key, read_list(path, check_pair), nearest))
        else:
            real = folder / f"eval-{match['split']}-seed{match['seed']}-references.json"
            references = read_list(real, check_text) if real.is_file() else []
            samples.append(SampleSet(*key, read_list(path, check_text), nearest, references))
    return samples, pairs


def _read_training_sets(folder: Path) -> tuple[list[SampleSet], list[PairSet]]:
    """The samples of the last sampling during training, of a run that has not been evaluated."""
    matches = ((_TRAINING_SAMPLES.fullmatch(path.name), path) for path in sorted(folder.glob("*-*-*")))
    found = [(match, path) for match, path in matches if match]
    last = max((int(match["milestone"]) for match, _ in found), default=0)
    samples, pairs = [], []
    for match, path in found:
        if int(match["milestone"]) != last:
            continue
        if match["kind"] == "pairs" and path.suffix == ".json":
            pairs.append(PairSet("valid", None, match["label"], read_list(path, check_pair)))
        elif match["kind"] == "sample" and path.suffix == ".txt":
            samples.append(SampleSet("valid", None, match["label"], read_text(path).split("\n")[:-1]))
    return samples, pairs


def _nearest(path: Path) -> list[Nearest | None]:
    if not path.is_file():
        return []
    return [None if entry is None else _one_nearest(entry) for entry in read_list(path, check_nearest)]


def _one_nearest(entry: dict[str, Any]) -> Nearest:
    shared = entry.get("longest_shared") or {}
    return Nearest(
        entry["text"], entry.get("row"), entry.get("similarity"), shared.get("text", ""), shared.get("words")
    )


def _trajectory(path: Path) -> Trajectory | None:
    data = read_object(path, check_trajectory)
    views = [(view["step"], view["t"], view["texts"]) for view in data["views"]]
    if not views or not views[0][2]:
        return None
    return Trajectory(data["steps"], views, data.get("sources") or [], data.get("classes") or [])


def _read_curves(path: Path) -> Curves:
    if not path.is_file():
        return {}
    try:
        curves = read_curves(path)
        if not all(isinstance(step, (int, float)) for points in curves.values() for step, _ in points):
            raise UserError(f"{path} has a step that is no number: {ADVICE}")
        return curves
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file: {ADVICE}") from None


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path: two, or as many as tell the runs apart."""
    for parts in range(2, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[1:][-parts:]) or str(folder) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names

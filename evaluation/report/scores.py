"""The table of metrics of one or several runs: means with intervals over seeds, and real texts beside them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.optional import optional_import
from evaluation.report import metric_names
from evaluation.report.metric_names import MetricName
from evaluation.report.run_files import Run

SPLITS = {
    "test": "Test split",
    "valid": "Validation split",
    "training": "During training",
    "validation": "Reconstruction",
}
KINDS = {"mbr_": "chosen by MBR", "oracle_": "best of the candidates", "chance_": "samples of other sources"}
_SEED = re.compile(r"(.+)_seed(\d+)")
_CLASS = re.compile(r"cond(\d+)_(.+)")
_MATRIX = re.compile(r".*_cond\d+_ref\d+_.*_mauve")  # entries of a matrix, which has a section of its own
_MAUVE = re.compile(r"(.+)_(val|test|train)_mauve")


@dataclass(frozen=True)
class Cell:
    """A value; over several seeds their mean, with a 95 % interval of the mean by Student's t."""

    text: str
    interval: str = ""
    value: float | None = None
    seeds: int = 1


@dataclass(frozen=True)
class Row:
    key: str
    name: MetricName
    cells: list[Cell]  # of each run
    references: list[Cell]  # held-out texts, training texts


@dataclass(frozen=True)
class Table:
    """The metrics of one split."""

    title: str
    columns: list[str]
    groups: list[tuple[str, list[Row]]]
    headlines: list[Row]

    @property
    def explained(self) -> list[MetricName]:
        """The names of all metrics, each once."""
        return list(dict.fromkeys(row.name for _, rows in self.groups for row in rows))

    @property
    def seeds(self) -> list[int]:
        """The number of seeds of each run."""
        rows = [row for _, rows in self.groups for row in rows]
        return [max((row.cells[i].seeds for row in rows), default=1) for i in range(len(self.columns))]

    @property
    def has_references(self) -> bool:
        return any(cell.text for _, rows in self.groups for row in rows for cell in row.references)


EMPTY = Cell("")


def tables(runs: Sequence[Run]) -> list[Table]:
    """A table for each split on which a run was evaluated, or of its last samples during training."""
    by_split: dict[str, list[Mapping[str, Any]]] = {}
    for split in SPLITS:
        results = [_result(run, split) for run in runs]
        if any(results):
            by_split[split] = results
    return [_table(split, results, runs) for split, results in by_split.items()]


def _result(run: Run, split: str) -> Mapping[str, Any]:
    if split == "training":
        return {} if run.evaluations else run.training_metrics
    return run.validation if split == "validation" else run.evaluations.get(split, {})


def _table(split: str, results: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> Table:
    merged: dict[str, list[str]] = {}  # title of a group -> keys in the order of the first run that has them
    for result in results:
        summarized = {key for key, value in result.items() if isinstance(value, Mapping) and "mean" in value}
        for key, value in result.items():
            match = _SEED.fullmatch(key)
            if not _is_value(value) or key.startswith("reference/") or key == "step" or _MATRIX.fullmatch(key):
                continue
            if match and match[1] in summarized:
                continue
            keys = merged.setdefault(_group(key, runs[0]), [])
            if key not in keys:
                keys.append(key)
    groups = [(title, [_row(key, results) for key in keys]) for title, keys in merged.items()]
    order = sorted(groups, key=lambda group: (group[0].startswith("class "), group[0] == "Speed"))
    rows = [row for _, rows in order[:1] for row in rows]
    headlines = [row for end in metric_names.HEADLINES for row in rows if _is_headline(row, end)]
    title = SPLITS[split]
    if split == "training" and len(results) == 1:
        title += f", step {results[0].get('step', '')}"
    return Table(title, [run.name for run in runs], order, headlines[:4])


def _is_headline(row: Row, end: str) -> bool:
    name = row.key.rsplit("/", 1)[-1]
    return metric_names.find(name)[0] == end and not name.endswith("train_mauve") and any(c.text for c in row.cells)


def _group(key: str, run: Run) -> str:
    """The title of the group of a key: the way of decoding, the class, or the kind of candidate."""
    *prefix, name = key.split("/")
    if prefix == ["speed"]:
        return "Speed"
    where = "/".join(part for part in prefix if part != "model") or "Metrics"
    if match := _CLASS.fullmatch(name):
        return run.describe(f"cond{match[1]}_{where}")
    kind = next((title for start, title in KINDS.items() if name.startswith(start)), "")
    return f"{where}: {kind}" if kind else where


def _row(key: str, results: Sequence[Mapping[str, Any]]) -> Row:
    name = key.rsplit("/", 1)[-1]
    shown = next((name.removeprefix(start) for start in KINDS if name.startswith(start)), name)
    if match := _CLASS.fullmatch(shown):
        shown = match[2]
    references = [EMPTY, EMPTY]
    if key.startswith("model/"):
        for i, candidates in enumerate(_reference_keys(name)):
            found = (result[k] for result in results for k in candidates if _is_value(result.get(k)))
            references[i] = cell(next(found, None))
    return Row(key, metric_names.describe(shown), [cell(result.get(key)) for result in results], references)


def _reference_keys(name: str) -> tuple[list[str], list[str]]:
    """Keys of the same metric of held-out texts and of training texts."""
    if match := _MAUVE.fullmatch(name):
        return [f"reference/{match[1]}_train_{match[2]}_mauve"], []
    return [f"reference/{split}_{name}" for split in ("val", "test")], [f"reference/train_{name}"]


def cell(value: Any) -> Cell:
    """Format a number, or the summary of several seeds."""
    if isinstance(value, Mapping):
        values = [v for v in value.get("values", ()) if _is_number(v)]
        mean = value.get("mean")
        if mean is None or not _is_number(mean):
            return Cell("not defined", seeds=len(values))
        half = half_width(values)
        return Cell(number(mean), f"± {number(float(f'{half:.2g}'))}" if half is not None else "", mean, len(values))
    return Cell(number(value), value=value) if _is_number(value) else EMPTY


def half_width(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean, by Student's t; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    quantile = optional_import("scipy.special", "scipy", "the interval over seeds").stdtrit(n - 1, 0.975)
    return float(quantile) * std / math.sqrt(n)


def number(value: float) -> str:
    """At most four significant digits; whole numbers and large ones with separators."""
    if value == 0 or isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if value != 0 and abs(value) < 1e-5:
        return f"{value:.2e}"
    if abs(value) < 0.001:
        return f"{value:.6f}"
    return f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_value(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, Mapping) and "mean" in value and "values" in value)

"""Trackers of what a run logs: metrics.jsonl in the run folder always; Weights & Biases and TensorBoard by a flag.

All three are trackers of accelerate (accelerate.tracking.GeneralTracker), with methods for what it has none: tables,
histograms, files. No tracker prompts or waits for the network: without a key wandb runs offline, and its folder can be
synced later. docs/tracking.md names what is logged.

    metrics.jsonl   MetricsFile, ours: accelerate has no tracker that a resumed run can cut back to its step
    wandb           utils/wandb_tracker
    tensorboard     utils/tensorboard_tracker
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate.tracking import GeneralTracker

from utils.errors import UserError
from utils.run_folder import write_text


@dataclass(frozen=True)
class Histogram:
    """Counts (k,) between edges (k + 1,)."""

    edges: Sequence[float]
    counts: Sequence[int]

    @classmethod
    def of(cls, values: Any, bins: int = 30) -> Histogram:
        """The histogram of numbers of any shape; those that are not finite are left out."""
        values = np.asarray(values, dtype=np.float64).ravel()
        values = values[np.isfinite(values)]
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        width = 1e-3 * max(abs(low), abs(high), 1e-9)  # of equal numbers, such as norms of normalized latents
        if high - low < width:
            low, high = low - width, high + width
        counts, edges = np.histogram(values, bins, (low, high))
        return cls([float(f"{edge:.6g}") for edge in edges], counts.tolist())


class Tracker(Protocol):
    """A tracker besides metrics.jsonl. Names and arguments are those of accelerate where it has them."""

    def cut_back(self, step: int) -> None:
        """Training starts, or goes on, after this step, and logs again what came later."""

    def store_init_configuration(self, values: Mapping[str, Any], part: str = "") -> None:
        """Store the configuration of the run, which may be nested. part: that of an evaluation, such as "eval"."""

    def log(self, values: Mapping[str, Any], step: int) -> None: ...

    def log_table(self, name: str, columns: Sequence[str], data: Sequence[Sequence[Any]], step: int) -> None: ...

    def log_histogram(self, name: str, histogram: Histogram, step: int) -> None: ...

    def log_file(self, path: Path, name: str, step: int) -> None:
        """Store a file, such as the report, under a name."""

    def finish(self) -> None: ...


class MetricsFile(GeneralTracker):
    """metrics.jsonl: a line {"step": ..., name: value ...} per log point.

    step: where the run resumes. Lines of later steps, and those that are no such line (a kill leaves half of one), are
    removed; the resumed run writes them again. None keeps all lines, for an evaluation. keep_bytes: size of the file
    when the checkpoint was saved, if the evaluation after it is made again: what follows are lines of that evaluation.
    """

    name, requires_logging_directory, main_process_only = "jsonl", True, False

    def __init__(self, folder: Path | str, step: int | None = None, keep_bytes: int | None = None):
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"
        if step is not None and self.path.exists():
            held = self.path.read_bytes()
            if keep_bytes is not None and (keep_bytes == 0 or held[keep_bytes - 1 : keep_bytes] == b"\n"):
                held = held[:keep_bytes]
            lines = _lines(held)
            odd = sum(bool(line.strip()) for line in held.split(b"\n")) - len(lines)
            if odd:
                what = f"{odd} odd line(s) of {self.path} removed, such as half of one that a kill left"
                print(f"note: {what}", file=sys.stderr)
            kept = [line for line in lines if line["step"] <= step]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def num_bytes(self) -> int:
        """Size of the file; 0 without one."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def tracker(self) -> Path:
        return self.path

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        line = json.dumps({"step": step, **{k: _plain(v) for k, v in values.items()}})
        self.path.parent.mkdir(parents=True, exist_ok=True)  # a run folder may be removed while it trains
        with self.path.open("a", encoding="utf-8") as file:  # opened each time: others may read or append
            file.write(line + "\n")

    def log_histogram(self, name: str, histogram: Histogram, step: int) -> None:
        self.log({name: {"edges": list(histogram.edges), "counts": list(histogram.counts)}}, step)


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not (abs(value) < float("inf")) else value  # JSON has no nan


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; what is no such line, such as half of one that a kill left, is passed over."""
    path = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    return _lines(path.read_bytes())


def _lines(held: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in held.split(b"\n"):
        with suppress(ValueError, RecursionError):  # no JSON, or not UTF-8
            found = json.loads(line)
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                lines.append(found)
    return lines


def wants_wandb(settings: Any) -> bool:
    """On when --wandb or another flag of wandb was typed or is in --config, and never by a key of the environment.

    --no_wandb and --wandb_mode disabled switch it off; so does WANDB_MODE=disabled, unless --wandb_mode was typed.
    """
    options, explicit = settings.config.tracking, settings.explicit
    if ("wandb" in explicit and not options.wandb) or options.wandb_mode == "disabled":
        return False
    if options.wandb_mode is None and (
        os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")
    ):
        return False
    return bool(explicit & {"wandb", "wandb_name", "wandb_mode", "wandb_group", "wandb_tags"})


def check_trackers(settings: Any) -> None:
    """UserError if a flag asks for a tracker whose package is missing, for wandb online without a key, or for a report
    that could not be made. Called before a run folder is made.
    """
    options, mode = settings.config.tracking, settings.mode
    if options.log_report and mode == "gen_data":
        raise UserError("--log_report: --gen_data evaluates nothing that a report could show: leave one of them out")
    if options.log_report and mode in ("eval", "eval_test") and settings.config.run.output_dir:
        raise UserError(
            "--log_report: the report of a run shows the evaluations in its folder: leave --output_dir out, or run "
            f"python -m evaluation.report {settings.config.run.resume_dir} later"
        )
    if wants_wandb(settings):
        from utils.wandb_tracker import check_wandb

        check_wandb(settings.config.tracking)
    if settings.config.tracking.tensorboard:
        from utils.tensorboard_tracker import check_tensorboard

        check_tensorboard()


def make_trackers(settings: Any, project: str, folder: Path) -> list[Tracker]:
    """The trackers of the flags, besides metrics.jsonl. Called on rank 0 only.

    folder: the run folder. A resumed run goes on in its own wandb run, and so does an evaluation of it.
    """
    trackers: list[Tracker] = []
    if wants_wandb(settings):
        from utils.wandb_tracker import Wandb

        given = settings.config.run.resume_dir
        run = Path(given) if given and settings.mode else None
        kind = "train" if settings.mode in (None, "resume_training") else settings.mode
        trackers.append(Wandb(project, folder, settings.config.tracking, run=run, kind=kind))
    if settings.config.tracking.tensorboard:
        from utils.tensorboard_tracker import TensorBoard

        trackers.append(TensorBoard(folder))
    return trackers


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; values that a tracker cannot store become texts."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    return flat

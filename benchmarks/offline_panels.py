"""The panels of a wandb run that was logged offline, as one picture: wandb's own dashboard needs its server.

    python -m benchmarks.offline_panels RUN [--output panels.png]

RUN: a run folder with wandb/offline-run-*/. All of them that have the id of the run are read in order of time, as
`wandb sync` would merge them. Curves and histograms are drawn as logged, one panel per group of names.
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError, exit_on_user_error

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # of LevelDB's log format: checksum, length, type of a chunk
FILE_HEADER = 7
WRITING_SECONDS = 10.0  # since its last change, in which a file without an end may still be written
PANELS = {  # title -> the names that it shows, if they were logged
    "training loss by noise level": ("loss", "loss_q0", "loss_q1", "loss_q2", "loss_q3", "train/loss"),
    "validation loss": ("val_loss", "val_ema_loss", "val/loss", "val/lm_loss"),
    "validation loss by noise level": ("val_ema_loss_q0", "val_ema_loss_q1", "val_ema_loss_q2", "val_ema_loss_q3"),
    "learning rate": ("learning_rate", "lr"),
    "gradient norm": ("grad_norm",),
    "steps per second": ("steps_per_second",),
}


@dataclass
class OfflineRun:
    """What wandb's files hold of a run."""

    run_id: str = ""
    name: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # a row per log call
    artifacts: list[str] = field(default_factory=list)


def read_offline_run(folder: Path) -> OfflineRun:
    """Read every wandb file below a run folder. Raises UserError if there is none."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    if not files:
        raise UserError(f"{folder} holds no wandb run that was logged offline: train with --wandb_mode offline")
    run = OfflineRun()
    for path in files:
        for record in _all_records(path):
            _add(run, record)
    return run


def _all_records(path: Path) -> list[Any]:
    """The records of a file. wandb's process writes the last ones after finish() has returned: they are waited for."""
    from wandb.proto import wandb_internal_pb2

    while True:
        is_new = time.time() - path.stat().st_mtime < WRITING_SECONDS
        records = []
        for data in _records(path.read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(data)
        if not is_new or any(record.WhichOneof("record_type") == "exit" for record in records):
            return records  # a run that was killed has no exit
        time.sleep(0.1)


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, of which a long one spans several chunks; half of one is left."""
    position, parts = FILE_HEADER, []
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:
            position += left
            continue
        _, length, kind = HEADER.unpack_from(data, position)
        position += HEADER.size
        parts.append(data[position : position + length])
        position += length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield b"".join(parts)
            parts = []


def _add(run: OfflineRun, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.run_id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
        run.tags = list(record.run.tags)
    elif kind == "config":
        run.config |= _values(record.config.update)
    elif kind == "history":
        run.history.append(_values(record.history.item))
    elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
        run.artifacts.append(record.request.log_artifact.artifact.name)
    elif kind == "artifact":
        run.artifacts.append(record.artifact.name)


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *outer, name = [item.key] if item.key else list(item.nested_key)
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[name] = json.loads(item.value_json)
    return values


def draw(run: OfflineRun, path: Path) -> None:
    """Draw the panels that have data, and every logged histogram at its last step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    curves = {title: {n: _points(run, n) for n in names if len(_points(run, n)) > 1} for title, names in PANELS.items()}
    curves = {title: found for title, found in curves.items() if found}
    histograms = {n: v for row in run.history for n, v in row.items() if isinstance(v, dict) and "bins" in v}
    count = len(curves) + len(histograms)
    if not count:
        raise UserError("the wandb run holds no curve and no histogram")
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, found) in zip(grid, curves.items(), strict=False):
        for name, points in found.items():
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("step")
        axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    for axes, (name, histogram) in zip(grid[len(curves) :], histograms.items(), strict=False):
        axes.stairs(histogram["values"], histogram["bins"], fill=True)
        axes.set_title(name, fontsize="medium")
    for axes in grid[count:]:
        axes.set_axis_off()
    figure.suptitle(f"wandb run {run.name or run.run_id}, logged offline")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _points(run: OfflineRun, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in run.history if isinstance(row.get(name), int | float) and "step" in row]


@exit_on_user_error
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, default=Path("panels.png"))
    args = parser.parse_args()
    draw(read_offline_run(args.run), args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

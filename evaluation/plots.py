"""Curves of a run's metrics.jsonl as pictures: one file per group of keys. Knows nothing of how they were measured."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.packages import need
from utils.errors import UserError

Curves = Mapping[str, Sequence[tuple[float, float]]]  # key -> (step, value)


COUNTERS = ("epoch", "samples", "seconds")  # straight lines over the steps


def read_curves(path: Path | str) -> dict[str, list[tuple[float, float]]]:
    """Every number of a metrics.jsonl over its "step". A last line cut short by a kill is passed over, no other."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is no JSON object with a step") from error
        for key, value in row.items():
            if (
                key != "step"
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
                and math.isfinite(value)
            ):
                curves[key].append((step, value))
    return dict(curves)


def plot(curves: Curves, folder: Path | str) -> list[Path]:
    """Draw loss.png (keys that name a loss, logarithmic) and one picture of each other key, lone points left out."""
    need("matplotlib", "matplotlib", "drawing curves").use("Agg")  # no window, no display
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, Sequence[tuple[float, float]]]] = defaultdict(dict)
    for key, points in curves.items():
        if len(points) > 1 and key not in COUNTERS:
            groups["loss" if "loss" in key else key][key] = points
    written = []
    for name, group in groups.items():
        path = folder / ("".join(c if c.isalnum() or c in "._-" else "_" for c in name) + ".png")
        _draw(
            group,
            path,
            logarithmic=name == "loss" and all(value > 0 for points in group.values() for _, value in points),
        )
        written.append(path)
    return written


def plot_run(folder: Path | str) -> list[Path]:
    """Draw the metrics.jsonl of a run folder into its folder plots/."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder} holds no metrics.jsonl: name the folder of a run")
    return plot(read_curves(folder / "metrics.jsonl"), folder / "plots")


def _draw(group: Curves, path: Path, *, logarithmic: bool) -> None:
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, points in group.items():
        steps, values = zip(*sorted(points), strict=True)
        axes.plot(steps, values, label=key, linewidth=1.2, marker="." if len(points) < 30 else "")
    axes.set_xlabel("step")
    axes.set_yscale("log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)

"""Plots: curves of a run's metrics.jsonl, x-y curves, and matrices as heat maps. Computes no metric."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.optional import optional_import
from utils.errors import UserError

Curves = Mapping[str, Sequence[tuple[float, float]]]  # key -> (step, value)

COUNTERS = ("epoch", "samples", "seconds")  # straight lines over the steps
MAX_INNER_LEGEND = 6  # curves; a figure with more has its legend outside
MAX_ANNOTATED = 20  # rows or columns; a larger heat map has no numbers, which would be too small to read


def read_curves(path: Path | str) -> dict[str, list[tuple[float, float]]]:
    """Read every number of a metrics.jsonl as (step, value). Skips a last line that a killed run left incomplete.

    Raises UserError for any other line that is not a JSON object with a "step".
    """
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path} line {number} is not a JSON object with a step: remove the line") from error
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
    """Draw loss.png (all keys that contain "loss", log scale) and one file per other key. Single points are skipped."""
    optional_import("matplotlib", "matplotlib", "drawing curves").use("Agg")  # no display needed
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, Sequence[tuple[float, float]]]] = defaultdict(dict)
    for key, points in curves.items():
        if len(points) > 1 and key not in COUNTERS:
            groups["loss" if "loss" in key else key][key] = points
    paths = []
    for name, group in groups.items():
        path = folder / ("".join(c if c.isalnum() or c in "._-" else "_" for c in name) + ".png")
        _draw(
            group,
            path,
            log_y=name == "loss" and all(value > 0 for points in group.values() for _, value in points),
        )
        paths.append(path)
    return paths


def plot_run(folder: Path | str) -> list[Path]:
    """Draw the metrics.jsonl of a run folder into its subfolder plots/."""
    folder = Path(folder)
    if not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder} holds no metrics.jsonl: name the folder of a run")
    return plot(read_curves(folder / "metrics.jsonl"), folder / "plots")


def _draw(
    group: Curves,
    path: Path,
    *,
    log_y: bool,
    xlabel: str = "step",
    ylabel: str = "",
    log_x: bool = False,
    dashed: Collection[str] = (),
) -> None:
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure in memory

    figure = Figure(figsize=(7 if len(group) <= MAX_INNER_LEGEND else 9, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, points in group.items():
        steps, values = zip(*sorted(points), strict=True)
        style = {"color": axes.lines[-1].get_color(), "linestyle": "--"} if key in dashed and axes.lines else {}
        axes.plot(steps, values, label=key, linewidth=1.2, marker="." if len(points) < 30 else "", **style)
    if log_x:
        ticks = sorted({x for points in group.values() for x, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_yscale("log" if log_y else "linear")
    axes.grid(alpha=0.3)
    legend: dict[str, Any] = (
        {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(group) > MAX_INNER_LEGEND else {}
    )
    axes.legend(fontsize="small", **legend)
    figure.savefig(path, dpi=120)


@dataclass(frozen=True)
class HeatMap:
    """One panel: values (rows, columns) in [0, 1], nan for missing, with the names of rows, columns and axes."""

    title: str
    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    ylabel: str = ""
    xlabel: str = ""


def heat_maps(panels: Sequence[HeatMap], path: Path | str) -> Path:
    """Draw panels side by side with one color scale from 0 to 1; small panels show their values as numbers."""
    matplotlib = optional_import("matplotlib", "matplotlib", "drawing matrices")
    matplotlib.use("Agg")
    with matplotlib.rc_context({"text.parse_math": False}):  # names of classes are no formulas
        return _draw_heat_maps(panels, Path(path))


def _draw_heat_maps(panels: Sequence[HeatMap], path: Path) -> Path:
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    side = max(max(len(panel.rows), len(panel.columns)) for panel in panels)
    inches = min(1.6 + 0.62 * side, 14)
    figure = Figure(figsize=(inches * len(panels) + 0.9, inches + 0.3), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        image = axes.imshow(panel.values, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(panel.title, fontsize="medium")
        axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=45, ha="right", fontsize="small")
        axes.set_yticks(range(len(panel.rows)), panel.rows, fontsize="small")
        axes.set_xlabel(panel.xlabel)
        axes.set_ylabel(panel.ylabel)
        for i, row in enumerate(panel.values if side <= MAX_ANNOTATED else ()):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    color = "black" if value > 0.6 else "white"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=color)
    figure.colorbar(image, ax=list(grid), shrink=0.8)
    figure.savefig(path, dpi=120)
    return path


def plot_xy(
    curves: Curves,
    path: Path | str,
    *,
    xlabel: str,
    ylabel: str = "",
    log_x: bool = False,
    dashed: Collection[str] = (),
) -> Path:
    """Draw several curves (x, y) over an axis other than the step, such as the guidance weight.

    log_x: logarithmic x axis with a tick at each x. dashed: names of curves drawn dashed in the color of the curve
    before them.
    """
    optional_import("matplotlib", "matplotlib", "drawing curves").use("Agg")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(curves, path, log_y=False, xlabel=xlabel, ylabel=ylabel, log_x=log_x, dashed=dashed)
    return path

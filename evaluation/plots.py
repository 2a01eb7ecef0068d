"""Pictures: the curves of a run's metrics.jsonl, one file per group of keys; matrices as heat maps; one figure against
another. Knows nothing of how they were measured.
"""

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
BESIDE = 6  # curves at most whose names stand within the figure
WRITTEN = 20  # classes at most whose values are written into a heat map: more would not be read


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
    optional_import("matplotlib", "matplotlib", "drawing curves").use("Agg")  # no window, no display
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


def _draw(
    group: Curves,
    path: Path,
    *,
    logarithmic: bool,
    horizontal: str = "step",
    vertical: str = "",
    ratios: bool = False,
    dashed: Collection[str] = (),
) -> None:
    from matplotlib.figure import Figure  # not pyplot: it keeps every figure alive

    figure = Figure(figsize=(7 if len(group) <= BESIDE else 9, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, points in group.items():
        steps, values = zip(*sorted(points), strict=True)
        style = {"color": axes.lines[-1].get_color(), "linestyle": "--"} if key in dashed and axes.lines else {}
        axes.plot(steps, values, label=key, linewidth=1.2, marker="." if len(points) < 30 else "", **style)
    if ratios:
        ticks = sorted({x for points in group.values() for x, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.set_yscale("log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    many: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(group) > BESIDE else {}
    axes.legend(fontsize="small", **many)
    figure.savefig(path, dpi=120)


@dataclass(frozen=True)
class HeatMap:
    """One panel: values (rows, columns) between 0 and 1, nan for none, and what its sides are called."""

    title: str
    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    vertical: str = ""
    horizontal: str = ""


def heat_maps(panels: Sequence[HeatMap], path: Path | str) -> Path:
    """Draw panels beside each other on one scale from 0 to 1, every value written into its field."""
    optional_import("matplotlib", "matplotlib", "drawing matrices").use("Agg")
    from matplotlib.figure import Figure

    path = Path(path)
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
        axes.set_xlabel(panel.horizontal)
        axes.set_ylabel(panel.vertical)
        for i, row in enumerate(panel.values if side <= WRITTEN else ()):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    colour = "black" if value > 0.6 else "white"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=colour)
    figure.colorbar(image, ax=list(grid), shrink=0.8)
    figure.savefig(path, dpi=120)
    return path


def against(
    curves: Curves,
    path: Path | str,
    *,
    horizontal: str,
    vertical: str = "",
    ratios: bool = False,
    dashed: Collection[str] = (),
) -> Path:
    """Draw several curves (x, y) over one axis that is no step, such as a guidance weight.

    ratios: twice x is as far from x everywhere, and the values of x are its ticks. dashed: names of curves that take
    the colour of the curve before them.
    """
    optional_import("matplotlib", "matplotlib", "drawing curves").use("Agg")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _draw(curves, path, logarithmic=False, horizontal=horizontal, vertical=vertical, ratios=ratios, dashed=dashed)
    return path

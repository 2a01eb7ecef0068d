"""Charts drawn by matplotlib: as PNG files, and as SVG for readers without JavaScript."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from pathlib import Path
from typing import Any

from evaluation.optional import optional_import
from evaluation.report.charts import Chart, Matrix, short
from utils.terminal import single_line

INK, PAPER = "#1b2026", "#ffffff"  # of text and axes; the SVG takes them from the color scheme of the reader
_STYLE = "<style>svg{--ink:#3d444d;--paper:#ffffff00}@media(prefers-color-scheme:dark){svg{--ink:#b9c1cb}}</style>"
MAX_LABELED = 12  # rows or columns whose values are written in the cells


def svg_data_uri(chart: Chart | Matrix) -> str:
    """The chart as the source of an image element."""
    figure = draw(chart, legend=False)
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    file = io.StringIO()
    with _settings():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue().replace(INK, "var(--ink)")
    start = text.index("<svg")
    end = text.index(">", start) + 1
    return "data:image/svg+xml;base64," + b64encode((text[start:end] + _STYLE + text[end:]).encode()).decode()


def write_png(chart: Chart | Matrix, folder: Path) -> Path:
    """Write {key}.png into a folder, with the title above the chart."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("".join(c if c.isalnum() or c in "._-" else "_" for c in chart.key)[:120] + ".png")
    figure = draw(chart, legend=True)
    figure.suptitle(_plain(chart.title), color=INK, fontsize="medium")
    figure.savefig(path, dpi=120, facecolor=PAPER)
    return path


def draw(chart: Chart | Matrix, *, legend: bool) -> Any:
    """Return a figure, without a title. legend: in the figure; the page has legends of its own."""
    optional_import("matplotlib", "matplotlib", "the report").use("Agg")  # no display needed
    from matplotlib.figure import Figure  # not pyplot, which keeps every figure in memory

    with _settings():
        # margins that fit every chart; only the names of classes need a layout, which takes longer than drawing
        figure = Figure(figsize=(6.2, 3.4), layout="constrained" if isinstance(chart, Matrix) else None)
        if isinstance(chart, Chart):
            figure.subplots_adjust(left=0.14, right=0.98, bottom=0.17, top=0.92)
        axes = figure.add_subplot()
        if isinstance(chart, Matrix):
            _matrix(figure, axes, chart)
        else:
            _lines(axes, chart, legend)
        axes.set_xlabel(_plain(chart.xlabel), color=INK)
        axes.set_ylabel(_plain(chart.ylabel), color=INK)
        axes.tick_params(colors=INK, which="both", labelsize="small")
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom") and not isinstance(chart, Matrix))
            spine.set_color(INK)
    return figure


def _settings() -> Any:
    import matplotlib

    # names of runs and classes are no formulas; text stays text in SVG, in the fonts of the page
    return matplotlib.rc_context(
        {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "report", "font.sans-serif": "DejaVu Sans"}
    )


def _lines(axes: Any, chart: Chart, legend: bool) -> None:
    for series in chart.series:
        style = {"color": series.color, "linewidth": 1.6, "linestyle": "--" if series.dashed else "-"}
        if chart.is_histogram:
            axes.stairs(series.y, series.x, label=_plain(series.name), **style)
        else:
            axes.plot(series.x, series.y, label=_plain(series.name), marker="." if len(series.x) < 20 else "", **style)
    if chart.log_y:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, color=INK, linewidth=0.5)
    axes.set_axisbelow(True)
    if legend and len(chart.series) > 1:
        axes.legend(fontsize="small", frameon=False, labelcolor=INK)


def _matrix(figure: Any, axes: Any, chart: Matrix) -> None:
    figure.set_size_inches(min(2.6 + 0.75 * len(chart.columns), 14), min(1.6 + 0.55 * len(chart.rows), 14))
    values = [[math.nan if value is None else value for value in row] for row in chart.values]
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(chart.columns)), [_plain(short(c)) for c in chart.columns], rotation=35, ha="right")
    axes.set_yticks(range(len(chart.rows)), [_plain(short(r)) for r in chart.rows])
    if max(len(chart.rows), len(chart.columns)) <= MAX_LABELED:
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                if math.isfinite(value):
                    color = "black" if value > 0.6 else "white"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="small", color=color)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize="small")
    bar.outline.set_visible(False)


def _plain(text: str) -> str:
    """A label that matplotlib shows as it is: a name that begins with an underscore would be left out of legends."""
    line = single_line(text)
    return f" {line}" if line.startswith("_") else line

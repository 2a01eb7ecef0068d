"""Charts drawn by Bokeh: zoom, and values under the pointer. The page has their legends, which hide lines by name.

A chart becomes JSON that BokehJS, embedded in the page, turns into a plot. Texts in it are data, never markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.optional import optional_import
from evaluation.report.charts import Chart, Matrix, short
from utils.terminal import single_line

HEIGHT = 280
TOOLS = "pan,box_zoom,reset,save"


def javascript() -> str:
    """The source of BokehJS, the part that plots need."""
    bokeh = optional_import("bokeh", "bokeh", "the report")
    return (Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js").read_text(encoding="utf-8")


def plot_json(chart: Chart | Matrix) -> Any:
    """What Bokeh.embed.embed_item draws into an element."""
    optional_import("bokeh", "bokeh", "the report")
    from bokeh.embed import json_item

    return json_item(_matrix(chart) if isinstance(chart, Matrix) else _lines(chart))


def _figure(chart: Chart | Matrix, tooltips: list[tuple[str, str]], **options: Any) -> Any:
    from bokeh.models import BasicTickFormatter, HoverTool
    from bokeh.plotting import figure

    made = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools=TOOLS,
        x_axis_label=_label(chart.xlabel),
        y_axis_label=_label(chart.ylabel),
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        output_backend="svg",  # sharp on every screen and on paper
        **options,
    )
    made.add_tools(HoverTool(tooltips=tooltips))
    made.toolbar.logo = None
    made.toolbar.autohide = True
    for axis in made.axis:
        if isinstance(axis.formatter, BasicTickFormatter):
            axis.formatter.power_limit_low = -5  # a learning rate of 0.0002 is written so
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = None
    return made


def _lines(chart: Chart) -> Any:
    from bokeh.models import BasicTickFormatter, ColumnDataSource, FixedTicker

    made = _figure(chart, [], y_axis_type="log" if chart.log_y else "linear")
    for i, series in enumerate(chart.series):
        name = _label(series.name)
        if chart.is_histogram:
            columns = {"top": list(series.y), "left": list(series.x[:-1]), "right": list(series.x[1:])}
            source = ColumnDataSource({**columns, "name": [name] * len(series.y)})
            made.quad(
                top="top", bottom=0, left="left", right="right", source=source, fill_color=series.color,
                fill_alpha=0.06 if series.dashed else 0.28, line_color=series.color, line_alpha=0.85,
                line_dash="dashed" if series.dashed else "solid", name=str(i),
            )  # fmt: skip
        else:
            source = ColumnDataSource({"x": list(series.x), "y": list(series.y), "name": [name] * len(series.x)})
            made.line(
                "x",
                "y",
                source=source,
                color=series.color,
                line_width=2,
                line_dash="dashed" if series.dashed else "solid",
                name=str(i),
            )
            if len(series.x) < 20:
                made.scatter("x", "y", source=source, color=series.color, size=5, name=str(i))
    hover = made.tools[-1]
    hover.tooltips = (
        [("", "@name"), (_label(chart.xlabel)[:20], "@left{0.[000]} to @right{0.[000]}"), ("share", "@top{0.0 %}")]
        if chart.is_histogram
        else [("", "@name"), (_label(chart.xlabel), "@x{0,0}"), (_label(chart.ylabel), "@y{0.[0000]}")]
    )
    if chart.log_y:
        made.yaxis.ticker = FixedTicker(ticks=_log_ticks([y for series in chart.series for y in series.y]))
        made.yaxis.formatter = BasicTickFormatter(power_limit_low=-5)
    made.y_range.only_visible = True
    return made


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Ticks for a logarithmic axis: Bokeh spaces its own evenly where the values span less than two decades."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    mantissas = (1, 2, 5) if max(values) > 4 * min(values) else range(1, 10)
    return [mantissa * 10.0**power for power in range(low, high + 1) for mantissa in mantissas]


def _matrix(chart: Matrix) -> Any:
    from bokeh.models import ColumnDataSource
    from bokeh.palettes import Viridis256
    from bokeh.transform import linear_cmap

    rows, columns = [_unique(names) for names in (chart.rows, chart.columns)]
    cells = [(r, c, v) for r, row in zip(rows, chart.values, strict=True) for c, v in zip(columns, row, strict=True)]
    known = [(r, c, v) for r, c, v in cells if v is not None]
    source = ColumnDataSource(
        {
            "row": [r for r, _, _ in known],
            "column": [c for _, c, _ in known],
            "value": [v for _, _, v in known],
            "label": [f"{v:.2f}" for _, _, v in known],
            "ink": ["#000000" if v > 0.6 else "#ffffff" for _, _, v in known],
        }
    )
    tooltips = [("row", "@row"), ("column", "@column"), ("value", "@value{0.000}")]
    made = _figure(chart, tooltips, x_range=columns, y_range=rows[::-1])
    made.height = min(110 + 42 * len(rows), 640)
    made.rect(
        "column", "row", 0.98, 0.96, source=source, line_color=None,
        fill_color=linear_cmap("value", Viridis256, 0, 1),
    )  # fmt: skip
    if len(columns) <= 12:
        made.text(
            "column", "row", "label", source=source, text_color="ink", text_align="center", text_baseline="middle",
            text_font_size="12px",
        )  # fmt: skip
    made.grid.grid_line_color = None
    made.xaxis.major_label_orientation = 0.7
    return made


def _label(text: str) -> str:
    """A text on one line, of which Bokeh makes no formula: it takes what stands between two $$ for TeX."""
    return single_line(text).replace("$$", "$\u200b$")


def _unique(names: Any) -> list[str]:
    """Names on one line, each different from the others, as the ranges of Bokeh demand."""
    seen: dict[str, None] = {}
    for name in names:
        label = _label(short(name))
        while label in seen:
            label += " "
        seen[label] = None
    return list(seen)

"""The page of a report: one HTML file with everything in it, and its charts as PNG files beside it.

Every text passes through the automatic escaping of jinja2. The page states in its security policy that it loads nothing
and runs no script but its own two, which carry a random number.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from evaluation.optional import optional_import
from evaluation.report import curves, distributions, interactive, overview, protocols, scores, static, texts
from evaluation.report.charts import Chart, Matrix
from evaluation.report.run_files import Run
from utils.run_folder import write_text
from utils.terminal import printable

TEMPLATES = Path(__file__).parent / "templates"


def write_page(runs: Sequence[Run], path: Path) -> list[Path]:
    """Write the page, and {name of the page}-figures/ with its charts. Returns the paths of all files."""
    groups = chart_groups(runs)
    write_text(path, render(runs, groups))
    folder = path.with_name(f"{path.stem}-figures")
    return [path, *(static.write_png(chart, folder) for group in groups.values() for chart in group)]


def chart_groups(runs: Sequence[Run]) -> dict[str, list[Chart | Matrix]]:
    """The charts of each section; their keys differ."""
    found: dict[str, list[Chart | Matrix]] = {
        "curves": [*curves.charts(runs)],
        "distributions": [*distributions.charts(runs)],
        "classes": [matrix for run in runs for matrix in distributions.matrices(run, prefix=len(runs) > 1)],
    }
    return found


def render(runs: Sequence[Run], groups: dict[str, list[Chart | Matrix]]) -> str:
    """Return the HTML of the page."""
    jinja2 = optional_import("jinja2", "jinja2", "the report")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # BokehJS reads definitions before references
    measured, sampled = protocols.differences(runs)
    return environment.get_template("report.html.jinja").render(
        title=", ".join(run.name for run in runs),
        runs=runs,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        nonce=secrets.token_urlsafe(16),
        overviews=[overview.overview(run) for run in runs],
        tables=scores.tables(runs),
        protocols=protocols.protocols(runs),
        measured=measured,
        sampled=sampled,
        changed_settings=protocols.settings_that_differ(runs) if len(runs) > 1 else [],
        groups=groups,
        images={chart.key: static.svg_data_uri(chart) for group in groups.values() for chart in group},
        plots={chart.key: interactive.plot_json(chart) for group in groups.values() for chart in group},
        browser=texts.browser(runs),
        players=texts.players(runs),
        bokeh=jinja2.utils.markupsafe.Markup(interactive.javascript()),
        style=_asset(jinja2, "report.css"),
        script=_asset(jinja2, "report.js"),
        colors={run.name: color for run, color in curves.colored(runs)},
    )


def _printable(value: Any) -> Any:
    """Drop control codes and broken characters of texts; what jinja2 has made stays as it is."""
    return printable(value) if type(value) is str else value


def _asset(jinja2: Any, name: str) -> Any:
    return jinja2.utils.markupsafe.Markup((TEMPLATES / name).read_text(encoding="utf-8"))

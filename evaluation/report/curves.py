"""The curves of training: which logged values make a chart, under the names that the programs log."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.report.charts import COLORS, NOISE_COLORS, Chart, Points, Series, line
from evaluation.report.run_files import Curves, Run

QUARTERS = ("least noise", "less noise", "more noise", "most noise")  # _q0 to _q3
LOSS = ("loss", "train/loss")
VALIDATION = ("val_loss", "val/loss")
AVERAGED = ("val_ema_loss", "val/ema_loss")
LEARNING_RATE, GRAD_NORM = ("learning_rate", "lr"), ("grad_norm", "train/grad_norm")
SPEED = "steps_per_second"
# beginnings of metrics that end as one of DURING and are of other texts, on another scale, or better when smaller
OTHER_SCALES = ("corpus_", "mbr_", "oracle_", "chance_", "diffuseq_", "self_")
DURING = {  # end of the key of a metric at each sampling -> title
    "mauve": "MAUVE of samples",
    "perplexity": "Perplexity of samples",
    "diversity": "Diversity of samples",
    "memorization": "Memorization of samples",
    "bleu": "BLEU",
    "exact_match": "Reconstructed exactly",
    "rougeL": "ROUGE-L",
}


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts of the curves of the runs, those of several runs in one chart each."""
    made = [*_losses(runs), *_by_noise(runs)]
    for key, title, ylabel, names in (
        ("learning_rate", "Learning rate", "learning rate", LEARNING_RATE),
        ("gradient_norm", "Gradient norm before clipping", "norm", GRAD_NORM),
    ):
        series = [line(run.name, points, color) for run, color in colored(runs) if (points := _find(run.curves, names))]
        made.append(Chart(key, title, "step", ylabel, series, log_y=key == "gradient_norm" and _positive(series)))
    rates = [line(run.name, points, color) for run, color in colored(runs) if (points := steps_per_second(run.curves))]
    made.append(Chart("steps_per_second", "Speed of training", "step", "steps per second", rates))
    made += _during(runs)
    return [chart for chart in made if any(len(series.x) > 1 for series in chart.series)]


def steps_per_second(curves: Curves) -> list[tuple[float, float]]:
    """The logged rate, or differences of the logged seconds, which begin anew when a run is resumed."""
    if curves.get(SPEED):
        return curves[SPEED]
    rates, before = [], (0.0, 0.0)
    for step, seconds in curves.get("seconds", []):
        if seconds > before[1] and step > before[0] and before != (0.0, 0.0):  # the first interval has the start-up
            rates.append((step, (step - before[0]) / (seconds - before[1])))
        before = (step, seconds)
    return rates


def _losses(runs: Sequence[Run]) -> list[Chart]:
    """Training and validation losses; the terms of the loss in a chart of their own."""
    total: list[Series] = []
    terms: list[Series] = []
    for run, color in colored(runs):
        several = len(runs) > 1
        shown = [
            ("training", LOSS, color, False),
            ("validation", VALIDATION, color if several else COLORS[1], True),
            ("validation, averaged weights", AVERAGED, color if several else COLORS[2], True),
        ]
        for name, names, tone, dashed in shown:
            if several and names is AVERAGED:
                continue
            if points := _find(run.curves, names):
                total.append(line(f"{run.name}, {name}" if several else name, points, tone, dashed))
        named = {*LOSS, *VALIDATION, *AVERAGED}
        other = [key for key in run.curves if "loss" in key.rsplit("/", 1)[-1] and key not in named and "_q" not in key]
        tones = COLORS[len(terms) :] + COLORS
        terms += [
            line(f"{run.name}, {key}" if several else key, run.curves[key], tone)
            for key, tone in zip(other, tones, strict=False)
        ]
    return [
        Chart("loss", "Loss", "step", "loss", total, log_y=_positive(total)),
        Chart("loss_terms", "Terms of the loss", "step", "loss", terms, log_y=_positive(terms)),
    ]


def _by_noise(runs: Sequence[Run]) -> list[Chart]:
    """The loss by quarter of the noise range; of several runs, a chart for each quarter."""
    made = []
    for prefix, title in (("loss", "Loss by noise level"), ("val_loss", "Validation loss by noise level")):
        if len(runs) == 1:
            series = [
                line(name, points, color)
                for q, (name, color) in enumerate(zip(QUARTERS, NOISE_COLORS, strict=True))
                if (points := runs[0].curves.get(f"{prefix}_q{q}"))
            ]
            made.append(Chart(f"{prefix}_by_noise", title, "step", "loss", series, log_y=_positive(series)))
            continue
        for q, name in enumerate(QUARTERS):
            series = [
                line(run.name, points, color)
                for run, color in colored(runs)
                if (points := run.curves.get(f"{prefix}_q{q}"))
            ]
            made.append(Chart(f"{prefix}_q{q}", f"{title}: {name}", "step", "loss", series, log_y=_positive(series)))
    return made


def _during(runs: Sequence[Run]) -> list[Chart]:
    """Metrics of the samples that a run writes while it trains."""
    made = []
    for end, title in DURING.items():
        series = []
        for run, color in colored(runs):
            keys = [key for key in run.curves if "/" in key and key.rsplit("/", 1)[-1].endswith(end)]
            keys = [key for key in keys if not key.rsplit("/", 1)[-1].startswith(OTHER_SCALES)]
            tones = [color] if len(runs) > 1 else list(COLORS)
            for key, tone in zip(keys[:4], tones * 4, strict=False):
                name = key.removeprefix("model/") if len(runs) == 1 else f"{run.name}, {key.removeprefix('model/')}"
                series.append(line(name, run.curves[key], tone))
        made.append(Chart(f"training_{end}", title, "step", end, series))
    return made


def _find(curves: Curves, names: Sequence[str]) -> Points:
    return next((curves[name] for name in names if curves.get(name)), [])


def colored(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    return [(run, COLORS[i % len(COLORS)]) for i, run in enumerate(runs)]


def _positive(series: Sequence[Series]) -> bool:
    return all(y > 0 for one in series for y in one.y)

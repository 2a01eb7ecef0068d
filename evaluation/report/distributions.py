"""Charts of sets of texts and latents: lengths, repetition, similarity to training texts, latent norms, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluation.report.charts import COLORS, Chart, Matrix, Series, bin_counts, even_edges, histogram
from evaluation.report.run_files import Run
from evaluation.text_tokens import ngrams, words

REFERENCE_COLOR = "#8a8f98"
HELD_OUT = "held-out texts"  # of eval-{split}-classes.json
MAX_SHOWN = 8  # sets of texts in a chart


def num_words(text: str) -> int:
    return len(words(text))


def repetition(text: str) -> float:
    """Share of the pairs of neighboring words that occur before in the same text; 0 for fewer than three words."""
    pairs = list(ngrams(words(text), 2))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Distributions of the samples of each run, beside those of real texts where they are recorded."""
    texts, references = _texts(runs), _references(runs)
    nearest = {run.name: [n for s in run.sets for n in s.nearest if n] for run in runs}
    similar = {name: [n.similarity for n in found if n.similarity is not None] for name, found in nearest.items()}
    shared = {
        name: [float(n.shared_words) for n in found if n.shared_words is not None] for name, found in nearest.items()
    }
    both = {**references, **texts}
    made = [
        _chart(
            "lengths", "Length", "words", {k: [float(num_words(t)) for t in v] for k, v in both.items()}, whole=True
        ),
        _chart(
            "repetition",
            "Repetition within a text",
            "share of word pairs that occur before in the text",
            {k: [repetition(t) for t in v] for k, v in both.items()},
        ),
        _chart("similarity", "Similarity to the nearest training text", "similarity", similar),
        _chart(
            "longest_shared",
            "Longest run of words shared with a training text",
            "words",
            shared,
            whole=True,
        ),
        _norms(runs),
    ]
    return [chart for chart in made if chart.series]


def matrices(run: Run, prefix: bool = False) -> list[Matrix]:
    """MAUVE of every class against every class, and the predicted classes. prefix: the name of the run in titles."""
    made = []
    of, key = (f"{run.name}: ", f"{run.name}_") if prefix else ("", "")
    for split, data in run.classes.items():
        names = data["class_names"]
        for row, result in data.items():
            if row in ("class_names", "protocol", "seeds"):
                continue
            sampled = [names[c] for c in result["classes"]]
            who = row if row == HELD_OUT else f"{row} samples"
            made += [
                Matrix(
                    f"{key}mauve_{split}_{row}_{other}",
                    f"{of}MAUVE: {who} against {other} texts",
                    f"{other} texts of",
                    f"{who} of",
                    sampled,
                    names,
                    matrix,
                )
                for other, matrix in result.get("mauve", {}).items()
            ]
            if shares := result.get("predicted_shares"):
                title, columns = f"{of}Predicted class: {who}", [*names, "no class"]
                name = f"{key}predicted_{split}_{row}"
                made.append(Matrix(name, title, "predicted", "requested", sampled, columns, shares))
    return made


def _texts(runs: Sequence[Run]) -> Mapping[str, list[str]]:
    found = {}
    for run in runs:
        labels = sorted({s.label for s in run.sets})
        for label in labels[:MAX_SHOWN]:
            texts = [text for s in run.samples if s.label == label for text in s.texts]
            texts += [record["sample"] for s in run.pairs if s.label == label for record in s.records]
            name = (
                " ".join(([run.name] if len(runs) > 1 else []) + ([run.describe(label)] if len(labels) > 1 else []))
                or "samples"
            )
            found[name] = texts
    return dict(list(found.items())[:MAX_SHOWN])


def _references(runs: Sequence[Run]) -> Mapping[str, list[str]]:
    """The real texts of the first run that has some."""
    for run in runs:
        texts = next((s.references for s in run.samples if s.references), None)
        if texts:
            return {"real texts": texts}
        if run.pairs:
            return {"references": [record["reference"] for record in run.pairs[0].records]}
    return {}


def _chart(key: str, title: str, xlabel: str, sets: Mapping[str, Sequence[float]], whole: bool = False) -> Chart:
    sets = {name: values for name, values in sets.items() if values}
    edges = even_edges(sets, whole=whole)
    return Chart(key, title, xlabel, "share of texts", _colored(sets, edges), is_histogram=True)


def _colored(sets: Mapping[str, Sequence[float]], edges: Sequence[float]) -> list[Series]:
    colors = iter(COLORS * (len(sets) // len(COLORS) + 1))
    return [
        histogram(name, edges, bin_counts(values, edges), REFERENCE_COLOR, dashed=True)
        if name in ("real texts", "references")
        else histogram(name, edges, bin_counts(values, edges), next(colors))
        for name, values in sets.items()
    ]


def _norms(runs: Sequence[Run]) -> Chart:
    series: list[Series] = []
    unit = "norm of a latent vector"
    for run in runs:
        unit = str(run.latent_norms.get("unit", unit))
        histograms: dict[str, Any] = run.latent_norms.get("histograms", {})
        for name, data in histograms.items():
            label = f"{run.name}, {name}" if len(runs) > 1 else name
            color = COLORS[len(series) % len(COLORS)]
            made = histogram(label, data["edges"], data["counts"], color)
            width = max(made.x[1] - made.x[0], 1e-12)  # each has bins of its own: heights compare as densities
            series.append(replace(made, y=[share / width for share in made.y]))
    return Chart("latent_norms", "Norms of latents", unit, "share per unit", series, is_histogram=True)

"""Our metrics as `evaluate.Metric` objects, for code that uses that interface.

Unlike evaluate.load, load() works without a network:

load("diversity").compute(predictions=texts)
load("mauve", scorer=scorer).compute(predictions=samples, references=texts)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation import diversity, fluency, memorization, overlap
from evaluation.mauve import mauve
from evaluation.optional import optional_import
from evaluation.scorers import Scorer
from utils.errors import UserError


@dataclass(frozen=True)
class HFMetric:
    """A row of HF_METRICS: description, function of (predictions, references, scorer, **options), and its inputs."""

    description: str
    compute: Callable[..., dict[str, Any]]
    needs_references: bool = False  # one per prediction (mauve: a set of the same size)
    needs_scorer: bool = False


def _mauve(p: Sequence[str], r: Sequence[str], s: Scorer, **options: Any) -> dict[str, Any]:
    result = mauve(p, r, s, **options)
    return {"mauve": result.score, **result.protocol()}


HF_METRICS: dict[str, HFMetric] = {
    "perplexity": HFMetric(
        "mean over texts of exp(mean NLL), start token prepended",
        lambda p, r, s: fluency.perplexity(p, s),
        needs_scorer=True,
    ),
    "mauve": HFMetric(
        "divergence frontier of two sets of texts, 0 to 1", _mauve, needs_references=True, needs_scorer=True
    ),
    "unique_wordcount": HFMetric("distinct lower-cased words", lambda p, r, s: diversity.unique_wordcount(p)),
    "diversity": HFMetric(
        "n-gram repetition for n = 2, 3, 4, and diversity", lambda p, r, s: diversity.ngram_diversity(p)
    ),
    "self_bleu": HFMetric(
        "mean BLEU of each text against all others",
        lambda p, r, s, **options: {"self_bleu": overlap.self_bleu(p, **options)},
    ),
    "memorization": HFMetric(
        "share of 4-grams, and of texts, that occur in the training texts (option training)",
        lambda p, r, s, training: memorization.memorization(p, training),
    ),
    "bleu": HFMetric(
        "corpus BLEU, cased", lambda p, r, s, **options: {"bleu": overlap.bleu(p, r, **options)}, needs_references=True
    ),
    "rouge": HFMetric(
        "mean ROUGE F-measures", lambda p, r, s, **options: overlap.rouge(p, r, **options), needs_references=True
    ),
    "exact_match": HFMetric(
        "share of predictions that equal their reference",
        lambda p, r, s: {"exact_match": overlap.exact_match(p, r)},
        needs_references=True,
    ),
    "bertscore": HFMetric(
        "mean BERTScore", lambda p, r, s, **options: overlap.bertscore(p, r, **options), needs_references=True
    ),
}


def load(name: str, *, scorer: Scorer | None = None) -> Any:
    """Return an evaluate.Metric by name. compute() takes the options of the metric's function as keywords."""
    if name not in HF_METRICS:
        raise UserError(f"{name} is not a metric: give one of {', '.join(HF_METRICS)}")
    row = HF_METRICS[name]
    if row.needs_scorer and scorer is None:
        raise UserError(f"the metric {name} needs a scorer: call load({name!r}, scorer=scorers.load(...))")
    evaluate = optional_import("evaluate", "evaluate", "the metric interface")
    features = optional_import("datasets", "datasets", "the metric interface").Features
    text = optional_import("datasets", "datasets", "the metric interface").Value("string")
    columns = {"predictions": text} | ({"references": text} if row.needs_references else {})

    class TextMetric(evaluate.Metric):  # type: ignore[name-defined]
        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=row.description, citation="", inputs_description="texts", features=features(columns)
            )

        def _compute(
            self, predictions: Sequence[str], references: Sequence[str] | None = None, **options: Any
        ) -> dict[str, Any]:
            return row.compute(predictions, references, scorer, **options)

    TextMetric.__name__ = TextMetric.__qualname__ = name
    return TextMetric(experiment_id=f"{name}-{id(row)}")

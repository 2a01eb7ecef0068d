"""Our metrics as `evaluate.Metric`s, for code that speaks that interface.

Unlike those of evaluate.load they work without a network:

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
class Row:
    """One metric: what it is, its function (predictions, references, scorer, **options), which of these it needs."""

    description: str
    compute: Callable[..., dict[str, Any]]
    references: bool = False  # one per prediction, or for mauve as many
    scorer: bool = False


def _mauve(p: Sequence[str], r: Sequence[str], s: Scorer, **how: Any) -> dict[str, Any]:
    found = mauve(p, r, s, **how)
    return {"mauve": found.score, **found.protocol()}


METRICS: dict[str, Row] = {
    "perplexity": Row(
        "mean over texts of exp(mean NLL), start token prepended", lambda p, r, s: fluency.perplexity(p, s), scorer=True
    ),
    "mauve": Row("divergence frontier of two sets of texts, 0 to 1", _mauve, references=True, scorer=True),
    "unique_wordcount": Row("distinct lower-cased words", lambda p, r, s: diversity.unique_wordcount(p)),
    "diversity": Row("n-gram repetition for n = 2, 3, 4, and diversity", lambda p, r, s: diversity.ngram_diversity(p)),
    "self_bleu": Row(
        "mean BLEU of each text against all others", lambda p, r, s, **how: {"self_bleu": overlap.self_bleu(p, **how)}
    ),
    "memorization": Row(
        "share of 4-grams, and of texts, that stand in the training texts (option training)",
        lambda p, r, s, training: memorization.memorization(p, training),
    ),
    "bleu": Row("corpus BLEU, cased", lambda p, r, s, **how: {"bleu": overlap.bleu(p, r, **how)}, references=True),
    "rouge": Row("mean ROUGE F-measures", lambda p, r, s, **how: overlap.rouge(p, r, **how), references=True),
    "exact_match": Row(
        "share of predictions that are their reference",
        lambda p, r, s: {"exact_match": overlap.exact_match(p, r)},
        references=True,
    ),
    "bertscore": Row("mean BERTScore", lambda p, r, s, **how: overlap.bertscore(p, r, **how), references=True),
}


def load(name: str, *, scorer: Scorer | None = None) -> Any:
    """An evaluate.Metric by name. Options of the function behind it are given to compute() by name."""
    if name not in METRICS:
        raise UserError(f"{name} is no metric here: one of {', '.join(METRICS)}")
    row = METRICS[name]
    if row.scorer and scorer is None:
        raise UserError(f"the metric {name} needs a scorer: load({name!r}, scorer=scorers.load(...))")
    evaluate = optional_import("evaluate", "evaluate", "the metric interface")
    features = optional_import("datasets", "datasets", "the metric interface").Features
    text = optional_import("datasets", "datasets", "the metric interface").Value("string")
    columns = {"predictions": text} | ({"references": text} if row.references else {})

    class TextMetric(evaluate.Metric):  # type: ignore[name-defined]
        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=row.description, citation="", inputs_description="texts", features=features(columns)
            )

        def _compute(
            self, predictions: Sequence[str], references: Sequence[str] | None = None, **how: Any
        ) -> dict[str, Any]:
            return row.compute(predictions, references, scorer, **how)

    TextMetric.__name__ = TextMetric.__qualname__ = name
    return TextMetric(experiment_id=f"{name}-{id(row)}")

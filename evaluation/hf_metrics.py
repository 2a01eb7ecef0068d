"""Our metrics as `evaluate.Metric` objects, for code that uses that interface.

Unlike evaluate.load, load() works without a network:

load("diversity").compute(predictions=texts)
load("mauve", scorer=scorer).compute(predictions=samples, references=texts)
load("mauve_embeddings", encoder=encoder).compute(predictions=samples, references=texts)
load("mbr").compute(predictions=candidates, references=texts)

Every row of METRICS can be loaded by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evaluation import diffuseq, diversity, fluency, mbr, memorization, overlap
from evaluation.encoders import SentenceEncoder
from evaluation.mauve import EMBEDDING_SCALING, mauve
from evaluation.metrics import METRICS, MetricContext
from evaluation.optional import optional_import
from evaluation.scorers import Scorer
from evaluation.text_tokens import is_empty
from evaluation.two_sample import linear_auc
from utils.errors import UserError, did_you_mean


@dataclass(frozen=True)
class HFMetric:
    """A row of HF_METRICS: description, function, and what the function needs.

    compute: (predictions, references, model, **options) -> named numbers. model: the scorer or the encoder.
    """

    description: str
    compute: Callable[..., dict[str, Any]]
    references: bool = False  # one per prediction (mauve, linear_auc: a set of any size)
    model: str | None = None  # "scorer" or "encoder"
    candidates: bool = False  # a prediction is a list of texts: all candidates of a source


def _mauve(p: Any, r: Any, model: Any, **options: Any) -> dict[str, Any]:
    result = mauve(p, r, model, **options)
    return {"mauve": result.score, **result.protocol()}


def _mauve_embeddings(p: Any, r: Any, model: SentenceEncoder, **options: Any) -> dict[str, Any]:
    result = mauve(p, r, model, **{"scaling": EMBEDDING_SCALING, **options})
    return {f"mauve_embeddings_{model.name}": result.score, **model.protocol([result])}


def _mbr(p: Any, r: Any, m: Any, **options: Any) -> dict[str, Any]:
    chosen = mbr.select(p, **options)
    return {**overlap.rouge(chosen.texts, r), "sacrebleu": overlap.bleu(chosen.texts, r), "mbr_ties": chosen.tie_share}


HF_METRICS: dict[str, HFMetric] = {
    "empty": HFMetric("number of texts without words", lambda p, r, m: {"empty": sum(map(is_empty, p))}),
    "perplexity": HFMetric(
        "mean over texts of exp(mean NLL), start token prepended",
        lambda p, r, m: fluency.perplexity(p, m),
        model="scorer",
    ),
    "mauve": HFMetric("divergence frontier of two sets of texts, 0 to 1", _mauve, references=True, model="scorer"),
    "mauve_embeddings": HFMetric(
        "the same on mean-pooled embeddings of a sentence encoder", _mauve_embeddings, references=True, model="encoder"
    ),
    "linear_auc": HFMetric(
        "how well a linear model on words and pairs of words tells predictions from real texts; 0.5: not at all",
        lambda p, r, m, **options: linear_auc(p, r, **options),
        references=True,
    ),
    "unique_wordcount": HFMetric("distinct lower-cased words", lambda p, r, m: diversity.unique_wordcount(p)),
    "diversity": HFMetric(
        "n-gram repetition for n = 2, 3, 4, and diversity", lambda p, r, m: diversity.ngram_diversity(p)
    ),
    "self_bleu": HFMetric(
        "mean BLEU of each text against all others",
        lambda p, r, m, **options: {"self_bleu": overlap.self_bleu(p, **options)},
    ),
    "memorization": HFMetric(
        "share of 4-grams, and of texts, that occur in the training texts (option training)",
        lambda p, r, m, training: memorization.memorization(p, training),
    ),
    "bleu": HFMetric(
        "corpus BLEU, cased", lambda p, r, m, **options: {"bleu": overlap.bleu(p, r, **options)}, references=True
    ),
    "sacrebleu": HFMetric(
        "the same, by its name in evaluations of pairs (option tokenizer)",
        lambda p, r, m, **options: {"sacrebleu": overlap.bleu(p, r, **options)},
        references=True,
    ),
    "rouge": HFMetric(
        "mean ROUGE F-measures", lambda p, r, m, **options: overlap.rouge(p, r, **options), references=True
    ),
    "stem_rouge": HFMetric(
        "the same of stemmed words",
        lambda p, r, m: {f"stem_{key}": value for key, value in overlap.rouge(p, r, stem=True).items()},
        references=True,
    ),
    "diffuseq": HFMetric(
        "DiffuSeq's BLEU of sentences, distinct words and length",
        lambda p, r, m: diffuseq.reference_scores(p, r),
        references=True,
    ),
    "exact_match": HFMetric(
        "share of predictions that equal their reference",
        lambda p, r, m: {"exact_match": overlap.exact_match(p, r)},
        references=True,
    ),
    "bertscore": HFMetric(
        "mean BERTScore", lambda p, r, m, **options: overlap.bertscore(p, r, **options), references=True
    ),
    "mbr": HFMetric(
        "ROUGE and BLEU of the candidates that agree best with the others", _mbr, references=True, candidates=True
    ),
    "oracle_rouge": HFMetric(
        "ROUGE of the best candidate of each source",
        lambda p, r, m: {f"oracle_{key}": value for key, value in mbr.oracle(p, r).items()},
        references=True,
        candidates=True,
    ),
    "candidate_diversity": HFMetric(
        "self-BLEU and distinct 4-grams of the candidates of a source",
        lambda p, r, m: diffuseq.candidate_diversity(p),
        candidates=True,
    ),
    "distinct_candidates": HFMetric(
        "share of distinct candidates of a source",
        lambda p, r, m: {"distinct_candidates": mbr.distinct_share(p)},
        candidates=True,
    ),
}


def _row(name: str) -> HFMetric:
    """Return the row of HF_METRICS, else one made from the row of METRICS, whose other needs are options."""
    if name in HF_METRICS:
        return HF_METRICS[name]
    if name not in METRICS:
        names = [*HF_METRICS, *(other for other in METRICS if other not in HF_METRICS)]
        raise UserError(f"{name} is not a metric{did_you_mean(name, names)}: give one of {', '.join(names)}")
    metric = METRICS[name]
    candidates = "candidates" in metric.needs

    def compute(p: Any, r: Any, model: Any, **options: Any) -> dict[str, Any]:
        texts, groups = ([row[0] for row in p], p) if candidates else (p, None)
        return metric.compute(MetricContext(texts, references=r, candidates=groups, scorer=model, **options))

    model = "scorer" if "scorer" in metric.needs else None
    return HFMetric(f"the metric {name} of evaluations", compute, "references" in metric.needs, model, candidates)


def load(name: str, *, scorer: Scorer | None = None, encoder: SentenceEncoder | None = None) -> Any:
    """Return an evaluate.Metric by name. compute() takes the options of the metric's function as keywords."""
    row = _row(name)
    model = {"scorer": scorer, "encoder": encoder}.get(row.model or "")
    if row.model and model is None:
        article = "an" if row.model == "encoder" else "a"
        raise UserError(
            f"the metric {name} needs {article} {row.model}: call load({name!r}, {row.model}={row.model}s.load(...))"
        )
    evaluate = optional_import("evaluate", "evaluate", "the metric interface")
    datasets = optional_import("datasets", "datasets", "the metric interface")
    text = datasets.Value("string")
    several = datasets.Sequence(text)
    predictions = several if row.candidates else text
    # of several references per prediction, all are right
    columns = [{"predictions": predictions, "references": side} for side in (text, several)]
    features = [datasets.Features(c) for c in (columns if row.references else [{"predictions": predictions}])]

    class TextMetric(evaluate.Metric):  # type: ignore[name-defined]
        def _info(self) -> Any:
            return evaluate.MetricInfo(
                description=row.description, citation="", inputs_description="texts", features=features
            )

        def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> Any:
            """Compute the metric. See its function for options; the library appends the inputs to this text."""
            if row.references and references is not None and len(predictions) != len(references):
                if name not in ("mauve", "mauve_embeddings", "linear_auc"):
                    raise UserError(
                        f"{len(predictions)} predictions for {len(references)} references: give one reference each"
                    )
                return self._compute(predictions, references, **options)  # sets of any size, which the class refuses
            given = {"references": references} if row.references else {}
            return super().compute(predictions=predictions, **given, **options)

        def _compute(self, predictions: Any, references: Any = None, **options: Any) -> dict[str, Any]:
            return row.compute(predictions, references, model, **options)

    TextMetric.__name__ = TextMetric.__qualname__ = name
    return TextMetric(experiment_id=f"{name}-{id(row)}")

"""The table of metrics. To add one: write its function in a file of its own, and add its row to METRICS.

A metric is a function of a MetricContext that returns named numbers. It must not raise for empty texts or for an empty
set: a number that cannot be computed is nan.

MAUVE is not a row: it compares two sets of texts rather than scoring one, and its key names the scorer and both sets
(evaluation.protocols).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation import mbr, overlap
from evaluation.diffuseq import candidate_diversity, reference_scores
from evaluation.diversity import ngram_diversity, unique_wordcount
from evaluation.fluency import perplexity
from evaluation.memorization import NgramIndex, memorization
from evaluation.optional import MissingPackage
from evaluation.scorers import Scorer
from evaluation.text_tokens import is_empty
from evaluation.two_sample import linear_auc

# Protocols: which texts are scored.
SAMPLES = "samples"  # samples without a source, and real texts for comparison
RECONSTRUCTION = "reconstruction"  # decoded held-out texts against the originals
INTERPOLATION = "interpolation"  # decoded latents between two texts
# Sequence-to-sequence samples: each against the reference of its source.
PAIRS = "pairs"  # the first candidate of each source: one sample
MBR = "mbr"  # the candidate that agrees best with the others
ORACLE = "oracle"  # the candidate closest to the reference
CHANCE = "chance"  # samples of other sources: the chance level
CANDIDATES = "candidates"  # all candidates of each source
ONE_TEXT_PER_SOURCE = (PAIRS, MBR, ORACLE, CHANCE)


@dataclass(frozen=True)
class MetricContext:
    """All inputs of metrics. An input that is not available is None, and the metrics that need it are skipped."""

    texts: Sequence[str] = ()  # the texts that are scored
    references: Sequence[overlap.Reference] | None = None  # the reference of each text: a text, or several
    candidates: Sequence[Sequence[str]] | None = None  # (examples, K): all candidates of each source
    scorer: Scorer | None = None  # language model for perplexity
    training: NgramIndex | None = None  # n-grams of the training texts
    bleu_tokenizer: str = "13a"  # tokenizer of sacreBLEU
    bertscore_model: str | None = None  # a hub id or a folder
    device: str = "cpu"  # device of the BERTScore model
    # real texts that samples should resemble: with references, one of each text, else in no order
    held_out: Sequence[str] | None = None
    sources: Sequence[str] | None = None  # the source of each text, where several texts may have one


@dataclass(frozen=True)
class Metric:
    """One row of METRICS: the function, the protocols that include it, and the fields of the context that it needs."""

    compute: Callable[[MetricContext], dict[str, float]]
    protocols: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _linear_auc(c: MetricContext) -> dict[str, float]:
    return linear_auc(c.texts, c.held_out or (), paired=c.references is not None, sources=c.sources)


def _stem_rouge(c: MetricContext) -> dict[str, float]:
    return {f"stem_{key}": value for key, value in overlap.rouge(c.texts, c.references or (), stem=True).items()}


def _oracle_rouge(c: MetricContext) -> dict[str, float]:
    return {f"oracle_{k}": value for k, value in mbr.oracle(c.candidates or (), c.references or ()).items()}


def _bertscore(c: MetricContext) -> dict[str, float]:
    scores = overlap.bertscore(c.texts, c.references or (), c.bertscore_model or "", device=c.device)
    return {"bertscore": scores["bertscore_f1"]}


METRICS: dict[str, Metric] = {
    "empty": Metric(lambda c: {"empty": sum(map(is_empty, c.texts))}, (SAMPLES, RECONSTRUCTION, INTERPOLATION, PAIRS)),
    "perplexity": Metric(
        lambda c: perplexity(c.texts, c.scorer) if c.scorer else {},
        (SAMPLES, RECONSTRUCTION, INTERPOLATION, PAIRS),
        needs=("scorer",),
    ),
    "unique_wordcount": Metric(lambda c: unique_wordcount(c.texts), (SAMPLES, PAIRS)),
    "diversity": Metric(lambda c: ngram_diversity(c.texts), (SAMPLES, INTERPOLATION, PAIRS)),
    "memorization": Metric(
        lambda c: memorization(c.texts, c.training) if c.training else {}, (SAMPLES, PAIRS), needs=("training",)
    ),
    "linear_auc": Metric(_linear_auc, (SAMPLES, PAIRS), needs=("held_out",)),
    "bleu": Metric(
        lambda c: {"bleu": overlap.bleu(c.texts, c.references or ())}, (RECONSTRUCTION,), needs=("references",)
    ),
    "exact_match": Metric(
        lambda c: {"exact_match": overlap.exact_match(c.texts, c.references or ())},
        (RECONSTRUCTION,),
        needs=("references",),
    ),
    "rouge": Metric(
        lambda c: overlap.rouge(c.texts, c.references or ()),
        (RECONSTRUCTION, PAIRS, MBR, CHANCE),
        needs=("references",),
    ),
    "stem_rouge": Metric(_stem_rouge, (PAIRS,), needs=("references",)),
    "sacrebleu": Metric(
        lambda c: {"sacrebleu": overlap.bleu(c.texts, c.references or (), tokenizer=c.bleu_tokenizer)},
        ONE_TEXT_PER_SOURCE,
        needs=("references",),
    ),
    "diffuseq": Metric(
        lambda c: reference_scores(c.texts, c.references or ()), ONE_TEXT_PER_SOURCE, needs=("references",)
    ),
    "bertscore": Metric(_bertscore, (PAIRS, MBR), needs=("references", "bertscore_model")),
    "oracle_rouge": Metric(_oracle_rouge, (CANDIDATES,), needs=("references", "candidates")),
    "candidate_diversity": Metric(
        lambda c: candidate_diversity(c.candidates or ()), (CANDIDATES,), needs=("candidates",)
    ),
    "distinct_candidates": Metric(
        lambda c: {"distinct_candidates": mbr.distinct_share(c.candidates or ())}, (CANDIDATES,), needs=("candidates",)
    ),
}


def used_for_pairs(metric: Metric) -> bool:
    """Whether a metric is computed of sequence-to-sequence samples."""
    return bool({*ONE_TEXT_PER_SOURCE, CANDIDATES} & set(metric.protocols))


def compute_metrics(context: MetricContext, protocol: str) -> tuple[dict[str, float], list[str]]:
    """Compute every metric of a protocol whose needs are met. Returns the numbers and the names of missing packages."""
    numbers: dict[str, float] = {}
    missing: list[str] = []
    for metric in METRICS.values():
        if protocol not in metric.protocols or any(getattr(context, name) is None for name in metric.needs):
            continue
        try:
            numbers |= metric.compute(context)
        except MissingPackage as error:
            missing.append(error.package)
    return numbers, missing

"""The published evaluation of the method: its metrics, the sets of texts, the keys and the protocol.

Sampling, files and trackers belong to the caller. A result is a flat dict of numbers plus "protocol", a dict of
everything that the numbers depend on: two results are comparable only if their protocols agree.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluation import mbr
from evaluation.encoders import SentenceEncoder
from evaluation.mauve import EMBEDDING_SCALING, Mauve, mauve
from evaluation.memorization import NgramIndex
from evaluation.metrics import (
    CANDIDATES,
    CHANCE,
    MBR,
    METRICS,
    ORACLE,
    PAIRS,
    RECONSTRUCTION,
    SAMPLES,
    MetricContext,
    compute_metrics,
    used_for_pairs,
)
from evaluation.optional import MissingPackage
from evaluation.overlap import Reference, alternatives, bleu_tokenizer_name, one_of_each
from evaluation.scorers import Scorer
from evaluation.text_tokens import word_rule
from utils.run_folder import package_versions

PACKAGES = ("torch", "transformers", "mauve-text", "faiss-cpu", "scikit-learn", "spacy", "sacrebleu", "rouge-score")
Result = dict[str, Any]


def evaluate_texts(
    samples: Sequence[str],
    references: Mapping[str, Sequence[str]],
    training: Iterable[str] | NgramIndex | None,
    scorer: Scorer | None,
    *,
    prefix: str = "",
    condition: int | None = None,
    encoder: SentenceEncoder | None = None,
    held_out: Sequence[str] | None = None,
) -> Result:
    """Compute every metric of a set of samples, and its MAUVE against each set of references (larger side cut).

    Keys: {prefix}{cond}{metric} and {prefix}{model}_{cond}{reference}_mauve, where cond is `cond{c}_` for samples of
    class c and empty otherwise, and model is the name of the scorer, and with an encoder that of the encoder.
    training: all training texts, or their NgramIndex if it is used again; None: no memorization. held_out: real texts
    for linear_auc; None: the first references that are not those of the key "train".

    Differs from the reference, which skips MAUVE if perplexity exceeds 5,000: a local scorer has another scale, and a
    curve without gaps is easier to read.
    """
    cond = "" if condition is None else f"cond{condition}_"
    index, no_index = _make_index(training)
    if held_out is None:
        held_out = next((texts for name, texts in references.items() if name != "train"), None)
    context = MetricContext(samples, scorer=scorer, training=index, held_out=held_out)
    numbers, missing = compute_metrics(context, SAMPLES)
    result: Result = {f"{prefix}{cond}{key}": value for key, value in numbers.items()}
    pairs = {f"{cond}{name}": (samples, texts) for name, texts in references.items()}
    mauves = compute_mauves(pairs, scorer, encoder)
    result |= {f"{prefix}{key}": value for key, value in mauves.numbers.items()}
    absent = {*no_index, *missing, *mauves.missing}
    result["protocol"] = (
        protocol(scorer, len(samples), mauves.of_scorer, absent)
        | mauves.encoder_protocol
        | {"words": word_rule([*samples, *(text for texts in references.values() for text in texts)])}
    )
    return result


def reference_metrics(
    references: Sequence[str],
    training: Sequence[str],
    scorer: Scorer | None,
    *,
    split: str,
    num_samples: int | None = None,
    index: NgramIndex | None = None,
    encoder: SentenceEncoder | None = None,
) -> Result:
    """Compute the same metrics of real texts, with which samples are compared. split: val or test.

    The training side is the first num_samples of `training` (shuffled by the caller), against the references and
    against the next num_samples, if there are as many. index: the index of all training texts, if it exists already.
    """
    n = min(num_samples or len(references), len(references))
    held_out, first, second = references[:n], training[:n], training[n : 2 * n]
    known, no_index = (index, []) if index is not None else _make_index(training)
    context = MetricContext(held_out, scorer=scorer, training=known, held_out=first)
    of_held_out, missing = compute_metrics(context, SAMPLES)
    of_train, _ = compute_metrics(MetricContext(first, scorer=scorer), SAMPLES)
    if split == "val" and "unique_wordcount" in of_held_out:
        of_held_out["unique_wordcounts"] = of_held_out["unique_wordcount"]  # the key was published in the plural
    result: Result = {f"reference/{split}_{key}": value for key, value in of_held_out.items()}
    result |= {f"reference/train_{key}": value for key, value in of_train.items()}
    pairs = {f"train_{split}": (first, held_out)}
    if len(second) == n:  # MAUVE of fewer texts is another number
        pairs["train_train"] = (first, second)
    mauves = compute_mauves(pairs, scorer, encoder, cache_samples=True)
    result |= {f"reference/{key}": value for key, value in mauves.numbers.items()}
    absent = {*no_index, *missing, *mauves.missing}
    result["protocol"] = protocol(scorer, n, mauves.of_scorer, absent) | mauves.encoder_protocol
    return result


def evaluate_reconstruction(
    predictions: Sequence[str], references: Sequence[Reference], scorer: Scorer | None = None, *, prefix: str = ""
) -> Result:
    """Compute the metrics of reconstructed texts: cased BLEU, exact match and ROUGE; perplexity given a scorer."""
    numbers, missing = compute_metrics(MetricContext(predictions, references, scorer=scorer), RECONSTRUCTION)
    result: Result = {f"{prefix}{key}": value for key, value in numbers.items()}
    compared = [*predictions, *(text for reference in references for text in alternatives(reference))]
    result["protocol"] = protocol(scorer, len(predictions), (), missing) | {"words": word_rule(compared)}
    return result


def evaluate_pairs(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Reference] | None,
    training: Iterable[str] | NgramIndex | None,
    scorer: Scorer | None,
    *,
    prefix: str = "",
    tokenizer: str | None = None,
    utility: str | None = None,
    selected: mbr.Selection | Sequence[str] | None = None,
    bertscore_model: str | None = None,
    device: str = "cpu",
    seed: int = 42,
    sources: Sequence[str] | None = None,
) -> Result:
    """Compute every metric of sequence-to-sequence samples. Keys begin with {prefix}.

    candidates: (examples, K), independent samples for each source. Keys without a further prefix score the first
    candidate, one sample; `mbr_` the candidate that agrees best with the others; `oracle_` the best candidate by each
    metric against the reference; `chance_` samples of other sources; `stem_` compares stemmed words.
    linear_auc tells the first candidates from one reference of each source, which the seed draws.
    `mbr_ties` is the share of sources whose candidates differ and yet have equal utilities: MBR took the first one.
    references: one per row: a text, or several that are all right; None: the metrics that need them are left out, and
    the protocol names them. training: target texts; None: no memorization.
    tokenizer: sacreBLEU's, for translation (`intl` into German, `13a` otherwise).
    utility: utility function of MBR, one of mbr.UTILITIES; None: sentence BLEU if a tokenizer is given, else ROUGE-2.
    selected: the result of mbr.select, if it was already computed. sources: of each row, where several rows have one.
    bertscore_model: a hub id or a folder; None skips BERTScore. device: device of that model.
    """
    if references is not None and len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} rows of candidates for {len(references)} references: give one row per reference"
        )
    utility = utility or ("rouge2" if tokenizer is None else "sacrebleu")
    bleu_tokenizer = tokenizer or "13a"
    if selected is None:
        model = {} if bertscore_model is None else {"bertscore_model": bertscore_model}
        selected = mbr.select(candidates, utility, tokenizer=bleu_tokenizer, device=device, **model)
    ties = {"mbr_ties": selected.tie_share} if isinstance(selected, mbr.Selection) else {}
    chosen = selected.texts if isinstance(selected, mbr.Selection) else selected
    first = [row[0] for row in candidates]
    index, no_index = _make_index(training)
    missing = set(no_index)
    numbers: dict[str, float] = {}
    scored: list[tuple[str, str, Sequence[str]]] = [(PAIRS, "", first), (MBR, "mbr_", chosen)]
    if references is not None:
        scored += [
            (ORACLE, "oracle_", mbr.oracle_bleu(candidates, references, tokenizer=bleu_tokenizer)),
            (CHANCE, "chance_", mbr.shuffle_predictions(first, seed)),
        ]
    real = None if references is None else one_of_each(references, seed)
    for kind, name, texts in (*scored, (CANDIDATES, "", first)):
        context = MetricContext(
            texts, references, candidates, scorer, index, bleu_tokenizer, bertscore_model, device, real, sources
        )  # fmt: skip
        values, packages = compute_metrics(context, kind)
        numbers |= {f"{name}{key}": value for key, value in values.items()}
        missing |= set(packages)
    result: Result = {f"{prefix}{key}": value for key, value in (numbers | ties).items()}
    compared = [*first, *(text for reference in references or () for text in alternatives(reference))]
    result["protocol"] = protocol(scorer, len(first), (), missing) | {
        "words": word_rule(compared),
        "candidates": len(candidates[0]) if candidates else 0,
        "mbr_utility": utility,
        **ties,
        "bleu_tokenizer": bleu_tokenizer_name(bleu_tokenizer, compared),
        "bertscore_model": bertscore_model,
        "shuffle_seed": seed,
    }
    if references is None:
        unmet = {"references", "held_out"}
        left_out = [name for name, metric in METRICS.items() if unmet & set(metric.needs) and used_for_pairs(metric)]
        result["protocol"]["skipped"] = [f"left out, since the sources have no references: {', '.join(left_out)}"]
    elif bertscore_model is None:
        result["protocol"]["skipped"] = ["BERTScore is skipped: name a model with --bertscore_model"]
    return result


def over_seeds(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Compute mean, sample standard deviation (n - 1; 0 for one value) and list of values over runs of several seeds.

    Only keys of every result appear. Values that are nan stay in the list, but not in mean and deviation. The protocols
    are listed under "protocol".
    """
    keys = [
        key for key in (results[0] if results else {}) if key != "protocol" and all(key in result for result in results)
    ]
    summary: dict[str, dict[str, Any]] = {}
    for key in keys:
        values = [result[key] for result in results]
        finite = [value for value in values if math.isfinite(value)]
        mean = statistics.fmean(finite) if finite else math.nan
        summary[key] = {
            "mean": mean,
            "std": statistics.stdev(finite) if len(finite) > 1 else 0.0 if finite else math.nan,
            "values": values,
        }
    if any("protocol" in result for result in results):
        summary["protocol"] = {"runs": [result.get("protocol") for result in results]}
    return summary


def with_seed_suffix(result: Result, seed: int) -> Result:
    """Rename the keys of one test run to {key}_seed{seed}; "protocol" keeps its name."""
    return {key if key == "protocol" else f"{key}_seed{seed}": value for key, value in result.items()}


def protocol(
    scorer: Scorer | None, n: int, scores: Iterable[Mauve] = (), missing: Iterable[str] = ()
) -> dict[str, Any]:
    """Return everything that a result depends on. comparable: True if published results used this very scorer."""
    metadata: dict[str, Any] = {"n": n, "versions": dict(package_versions(PACKAGES))}
    if scorer is None:
        metadata |= {"scorer": None, "comparable": False}
    else:
        metadata |= {
            "scorer": scorer.name,
            "fingerprint": scorer.fingerprint,
            "comparable": scorer.comparable,
            "max_length": scorer.max_length,
        }
        if not scorer.comparable:
            metadata["note"] = "perplexity and MAUVE are not comparable with published ones, which use GPT-2 large"
    mauve_scores = list(scores)
    if mauve_scores:  # all follow one rule and have about one size, so the smallest set describes them
        smallest = min(mauve_scores, key=lambda score: score.n)
        metadata["mauve"] = smallest.protocol()
        metadata |= {
            "buckets": smallest.buckets,
            "seed": smallest.seed,
            "mauve_few_samples": smallest.mauve_few_samples,
        }
    if missing:
        metadata["missing_packages"] = sorted(missing)
    return metadata


def _make_index(training: Iterable[str] | NgramIndex | None) -> tuple[NgramIndex | None, list[str]]:
    """Return the index of the training texts, and the missing packages; without them the index is None."""
    if training is None:
        return None, []
    try:
        return NgramIndex.from_texts(training), []
    except MissingPackage as error:
        return None, [error.package]


@dataclass
class MauveScores:
    """MAUVE of several pairs of sets, by a scorer and by an encoder."""

    numbers: dict[str, float] = field(default_factory=dict)  # {model}_{name of the pair}_mauve -> score
    of_scorer: list[Mauve] = field(default_factory=list)
    encoder_protocol: Result = field(default_factory=dict)  # empty without an encoder
    missing: list[str] = field(default_factory=list)  # packages without which nothing is computed


def compute_mauves(
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    scorer: Scorer | None,
    encoder: SentenceEncoder | None = None,
    *,
    cache_samples: bool = False,
) -> MauveScores:
    """Compute MAUVE of each pair of sets by each model that there is. cache_samples: as in mauve()."""
    result = MauveScores()
    try:
        if scorer is not None:
            by_scorer = {name: mauve(p, q, scorer, cache_samples=cache_samples) for name, (p, q) in pairs.items()}
            result.of_scorer = list(by_scorer.values())
            result.numbers |= {f"{scorer.name}_{name}_mauve": score.score for name, score in by_scorer.items()}
        if encoder is not None:
            by_encoder = {
                name: mauve(p, q, encoder, scaling=EMBEDDING_SCALING, cache_samples=cache_samples)
                for name, (p, q) in pairs.items()
            }
            # one model may have both roles
            name = encoder.name if scorer is None or scorer.name != encoder.name else f"{encoder.name}-embeddings"
            result.numbers |= {f"{name}_{key}_mauve": score.score for key, score in by_encoder.items()}
            result.encoder_protocol = {"mauve_encoder": encoder.protocol(by_encoder.values())}
    except MissingPackage as error:
        result.missing.append(error.package)
    return result

"""What is measured of which texts, under which keys, by what protocol: the published evaluation of the method.

Sampling, files and trackers are the caller's. A result is a flat dict of numbers plus "protocol", a dict of what the
numbers depend on: two results compare only where their protocols agree.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation import mbr
from evaluation.diffuseq import candidate_diversity, reference_scores
from evaluation.mauve import Mauve, mauve
from evaluation.memorization import NgramIndex
from evaluation.metrics import MetricContext, measure
from evaluation.optional import MissingPackage
from evaluation.overlap import bertscore, bleu, exact_match, rouge
from evaluation.scorers import Scorer
from utils.run_folder import package_versions

PACKAGES = ("torch", "transformers", "mauve-text", "faiss-cpu", "scikit-learn", "spacy", "sacrebleu", "rouge-score")
Result = dict[str, Any]


def evaluate_texts(
    samples: Sequence[str],
    references: Mapping[str, Sequence[str]],
    training: Iterable[str] | NgramIndex,
    scorer: Scorer | None,
    *,
    prefix: str = "",
    condition: int | None = None,
) -> Result:
    """Every metric of a set of samples, and its MAUVE against each set of references (the larger side is cut).

    Keys: {prefix}{cond}{metric} and {prefix}{scorer}_{cond}{reference}_mauve, where cond is `cond{c}_` for samples of
    class c and nothing otherwise. training: all training texts, or the Memory of them where it is used again.

    Differs from the reference, which leaves MAUVE out where perplexity exceeds 5,000: the scale of a home scorer is
    another, and a curve without gaps is easier to read.
    """
    cond = "" if condition is None else f"cond{condition}_"
    memory, missing = _memory(training)
    numbers, lacking = measure(samples, MetricContext(scorer, memory))
    result: Result = {f"{prefix}{cond}{key}": value for key, value in numbers.items()}
    scores, without = _mauves({name: (samples, texts) for name, texts in references.items()}, scorer)
    for name, found in scores.items():
        result[f"{prefix}{_of(scorer)}_{cond}{name}_mauve"] = found.score
    result["protocol"] = protocol(scorer, len(samples), scores.values(), {*missing, *lacking, *without})
    return result


def reference_metrics(
    references: Sequence[str],
    training: Sequence[str],
    scorer: Scorer | None,
    *,
    split: str,
    num_samples: int | None = None,
    memory: NgramIndex | None = None,
) -> Result:
    """The same metrics of real texts, which samples are to be read beside. split: val or test.

    The training side is the first num_samples of `training` (shuffled by the caller), against the references and
    against the next num_samples. memory: of all training texts, where it is at hand.
    """
    n = min(num_samples or len(references), len(references))
    held_out, first, second = references[:n], training[:n], training[n : 2 * n]
    known, missing = (memory, []) if memory is not None else _memory(training)
    of_held_out, lacking = measure(held_out, MetricContext(scorer, known))
    of_train, _ = measure(first, MetricContext(scorer, None))
    if split == "val" and "unique_wordcount" in of_held_out:
        of_held_out["unique_wordcounts"] = of_held_out["unique_wordcount"]  # the plural is how the key was published
    result: Result = {f"reference/{split}_{key}": value for key, value in of_held_out.items()}
    result |= {f"reference/train_{key}": value for key, value in of_train.items()}
    scores, without = _mauves({f"train_{split}": (first, held_out), "train_train": (first, second)}, scorer, real=True)
    result |= {f"reference/{_of(scorer)}_{name}_mauve": found.score for name, found in scores.items()}
    result["protocol"] = protocol(scorer, n, scores.values(), {*missing, *lacking, *without})
    return result


def evaluate_reconstruction(
    predictions: Sequence[str], references: Sequence[str], scorer: Scorer | None = None, *, prefix: str = ""
) -> Result:
    """How well texts come back: cased BLEU and exact match against the raw texts, ROUGE; perplexity given a scorer."""
    numbers, missing = measure(predictions, MetricContext(scorer), ("empty", "perplexity"))
    numbers |= {"bleu": bleu(predictions, references), "exact_match": exact_match(predictions, references)}
    numbers |= rouge(predictions, references)
    result: Result = {f"{prefix}{key}": value for key, value in numbers.items()}
    result["protocol"] = protocol(scorer, len(predictions), (), missing)
    return result


def evaluate_pairs(
    candidates: Sequence[Sequence[str]],
    references: Sequence[str],
    training: Iterable[str] | NgramIndex,
    scorer: Scorer | None,
    *,
    prefix: str = "",
    tokenizer: str | None = None,
    utility: str | None = None,
    chosen: Sequence[str] | None = None,
    bertscore_model: str | None = None,
    device: str = "cpu",
    seed: int = 42,
) -> Result:
    """Every metric of sequence-to-sequence samples, keys beginning with {prefix}.

    candidates: (examples, K), the independent samples of each source. Plain metrics are of each first one, one sample;
    `oracle_` of the best against the reference, by each metric; `mbr_` of the one that agrees best with the others;
    `shuffled_` of predictions of other examples (what chance gives); `stem_` with stemmed words. training: target
    texts. tokenizer: sacreBLEU's, for translation (`intl` into German, `13a` otherwise).
    utility: what candidates agree by, one of mbr.UTILITIES; None: sentence BLEU where a tokenizer is given, else
    ROUGE-2. chosen: by mbr.mbr_select, where it is known already.
    bertscore_model: a hub id or a folder; without it BERTScore is left out. device: of that model.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} rows of candidates for {len(references)} references: give one row for each"
        )
    utility = utility or ("rouge2" if tokenizer is None else "sacrebleu")
    words = tokenizer or "13a"
    if chosen is None:
        model = {} if bertscore_model is None else {"bertscore_model": bertscore_model}
        chosen = mbr.mbr_select(candidates, utility, tokenizer=words, device=device, **model)
    first = [row[0] for row in candidates]
    chance = mbr.shuffle_predictions(first, seed)
    memory, missing = _memory(training)
    numbers, lacking = measure(first, MetricContext(scorer, memory))
    numbers |= rouge(first, references)
    numbers |= {f"stem_{key}": value for key, value in rouge(first, references, stem=True).items()}
    numbers |= {f"shuffled_{key}": value for key, value in rouge(chance, references).items()}
    numbers |= {f"oracle_{key}": value for key, value in mbr.oracle(candidates, references).items()}
    numbers |= {f"mbr_{key}": value for key, value in rouge(chosen, references).items()}
    best = mbr.oracle_bleu(candidates, references, tokenizer=words)
    for kind, texts in {"": first, "mbr_": chosen, "oracle_": best, "shuffled_": chance}.items():
        numbers[f"{kind}sacrebleu"] = bleu(texts, references, tokenizer=words)
        numbers |= {f"{kind}{key}": value for key, value in reference_scores(texts, references).items()}
    numbers |= candidate_diversity(candidates)
    numbers["distinct_candidates"] = _mean([len(set(row)) / len(row) for row in candidates])
    if bertscore_model is not None:
        try:
            for kind, texts in {"": first, "mbr_": chosen}.items():
                found = bertscore(texts, references, bertscore_model, device=device)
                numbers[f"{kind}bertscore"] = found["bertscore_f1"]
        except MissingPackage as error:
            lacking.append(error.package)
    result: Result = {f"{prefix}{key}": value for key, value in numbers.items()}
    result["protocol"] = protocol(scorer, len(first), (), {*missing, *lacking}) | {
        "candidates": len(candidates[0]) if candidates else 0,
        "mbr_utility": utility,
        "bleu_tokenizer": words,
        "bertscore_model": bertscore_model,
        "shuffle_seed": seed,
    }
    if bertscore_model is None:
        result["protocol"]["left_out"] = ["BERTScore is left out: no model was named for it"]
    return result


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def over_seeds(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Mean, sample standard deviation (n - 1; 0 for one value) and values of every number, over runs of several seeds.

    A key must stand in every result. Values that are nan stay in the list and are left out of mean and deviation. The
    protocols stand in a list under "protocol".
    """
    keys = [
        key for key in (results[0] if results else {}) if key != "protocol" and all(key in result for result in results)
    ]
    summary: dict[str, dict[str, Any]] = {}
    for key in keys:
        values = [result[key] for result in results]
        good = [value for value in values if math.isfinite(value)]
        mean = statistics.fmean(good) if good else math.nan
        summary[key] = {
            "mean": mean,
            "std": statistics.stdev(good) if len(good) > 1 else 0.0 if good else math.nan,
            "values": values,
        }
    if any("protocol" in result for result in results):
        summary["protocol"] = {"runs": [result.get("protocol") for result in results]}
    return summary


def with_seed_suffix(result: Result, seed: int) -> Result:
    """The same result under the keys of one test run, {key}_seed{seed}; "protocol" keeps its name."""
    return {key if key == "protocol" else f"{key}_seed{seed}": value for key, value in result.items()}


def protocol(
    scorer: Scorer | None, n: int, scores: Iterable[Mauve] = (), missing: Iterable[str] = ()
) -> dict[str, Any]:
    """What a result depends on. comparable: whether published figures were computed with this very scorer."""
    facts: dict[str, Any] = {"n": n, "versions": dict(package_versions(PACKAGES))}
    if scorer is None:
        facts |= {"scorer": None, "comparable": False}
    else:
        facts |= {
            "scorer": scorer.name,
            "fingerprint": scorer.fingerprint,
            "comparable": scorer.comparable,
            "max_length": scorer.max_length,
        }
        if not scorer.comparable:
            facts["note"] = "perplexity and MAUVE do not compare with published figures, which use GPT-2 large"
    found = list(scores)
    if found:  # one rule and one size of sets, so the smallest speaks for all
        least = min(found, key=lambda score: score.n)
        facts["mauve"] = least.protocol()
        facts |= {"buckets": least.buckets, "seed": least.seed, "small_n": least.small_n}
    if missing:
        facts["missing_packages"] = sorted(missing)
    return facts


def _of(scorer: Scorer | None) -> str:
    return scorer.name if scorer else ""


def _memory(training: Iterable[str] | NgramIndex) -> tuple[NgramIndex | None, list[str]]:
    try:
        return NgramIndex.of(training), []
    except MissingPackage as error:
        return None, [error.package]


def _mauves(
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]], scorer: Scorer | None, *, real: bool = False
) -> tuple[dict[str, Mauve], list[str]]:
    """MAUVE of each pair of sets, and the packages that were missing. real: of real texts on both sides."""
    if scorer is None:
        return {}, []
    try:
        return {name: mauve(p, q, scorer, real=real) for name, (p, q) in pairs.items()}, []
    except MissingPackage as error:
        return {}, [error.package]

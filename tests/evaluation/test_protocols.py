from __future__ import annotations

import math
import sys

import pytest

from evaluation import metrics, protocols, text_tokens
from evaluation.mauve import mauve
from evaluation.memorization import NgramIndex
from evaluation.optional import MissingPackage, optional_import
from evaluation.overlap import one_of_each
from evaluation.protocols import (
    evaluate_pairs,
    evaluate_reconstruction,
    evaluate_texts,
    over_seeds,
    reference_metrics,
    with_seed_suffix,
)
from evaluation.two_sample import linear_auc
from utils.errors import UserError

REPETITION = {f"{n}gram_repitition" for n in (2, 3, 4)}
TEXT_KEYS = {
    "empty",
    "perplexity",
    "corpus_perplexity",
    "unique_wordcount",
    "diversity",
    "memorization",
    "train_copy_rate",
} | REPETITION


def test_keys_of_samples(scorer, stories):
    found = evaluate_texts(
        stories[:10], {"val": stories[20:30], "train": stories[40:50]}, stories[30:], scorer, prefix="model/beam/"
    )
    expected = TEXT_KEYS | {"linear_auc", "local_lm_val_mauve", "local_lm_train_mauve"}
    assert set(found) == {f"model/beam/{key}" for key in expected} | {"protocol"}


def test_keys_of_samples_of_a_class(scorer, stories):
    found = evaluate_texts(stories[:10], {"ref0_val": stories[:10]}, stories, scorer, prefix="model/beam/", condition=1)
    assert "model/beam/cond1_perplexity" in found
    assert "model/beam/local_lm_cond1_ref0_val_mauve" in found
    assert found["model/beam/cond1_train_copy_rate"] == 1 and found["model/beam/cond1_memorization"] == 1


def test_a_result_records_its_protocol(scorer, stories):
    found = evaluate_texts(stories[:40], {"val": stories[40:]}, NgramIndex(stories), scorer)
    metadata = found["protocol"]
    assert (
        metadata["scorer"] == "local_lm"
        and metadata["fingerprint"] == scorer.fingerprint
        and metadata["comparable"] is False
    )
    assert (
        metadata["n"] == 40
        and metadata["buckets"] == 4
        and metadata["seed"] == 25
        and metadata["mauve_few_samples"] is True
    )
    assert metadata["mauve"]["max_length"] == 256 and metadata["max_length"] == scorer.max_length
    assert "torch" in metadata["versions"] and "missing_packages" not in metadata
    assert found["local_lm_val_mauve"] == mauve(stories[:40], stories[40:], scorer).score


@pytest.mark.parametrize("samples", [[], [""], ["", " ", ""], ["", "Ann saw a dog.", "a"]])
def test_empty_samples_are_counted(scorer, stories, samples):
    found = evaluate_texts(samples, {"val": stories}, stories, scorer)
    assert found["empty"] == sum(not text.strip() for text in samples)
    assert set(found) == TEXT_KEYS | {"linear_auc", "local_lm_val_mauve", "protocol"}


def test_without_a_scorer(stories):
    found = evaluate_texts(stories[:5], {"val": stories[5:]}, stories, None)
    assert set(found) == TEXT_KEYS - {"perplexity", "corpus_perplexity"} | {"linear_auc", "protocol"}
    assert found["protocol"]["scorer"] is None


def test_a_missing_package_is_recorded_and_the_other_metrics_are_computed(scorer, stories, monkeypatch):
    def absent(context):
        optional_import("no_such_package_here", "no-such-package", "this metric")

    monkeypatch.setitem(metrics.METRICS, "diversity", metrics.Metric(absent, (metrics.SAMPLES,)))
    found = evaluate_texts(stories[:5], {}, stories, scorer)
    assert found["protocol"]["missing_packages"] == ["no-such-package"]
    assert "perplexity" in found and "diversity" not in found
    with pytest.raises(MissingPackage, match="pip install") as error:
        absent(metrics.MetricContext())
    assert isinstance(error.value, UserError)


def test_without_spacy_what_counts_ngrams_is_left_out(scorer, stories, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "spacy", None)  # as if it were not installed
    text_tokens._spacy_tokenizer.cache_clear()
    index = NgramIndex(stories, tmp_path)
    found = evaluate_texts(stories[:5], {}, index, scorer)
    assert "spacy" in found["protocol"]["missing_packages"] and "perplexity" in found and "memorization" not in found
    assert index.contains_text(stories[0]) and not list(tmp_path.iterdir())


def test_keys_of_references_for_validation(scorer, stories):
    found = reference_metrics(stories[:20], stories[20:], scorer, split="val", num_samples=16)
    published = {
        "train_perplexity",
        "val_perplexity",
        "local_lm_train_val_mauve",
        "local_lm_train_train_mauve",
        "val_memorization",
        "train_unique_wordcount",
        "val_unique_wordcounts",
    }
    published |= {f"{split}_{key}" for split in ("val", "train") for key in (*REPETITION, "diversity")}
    assert {f"reference/{key}" for key in published} <= set(found)
    assert "reference/train_memorization" not in found
    assert found["protocol"]["n"] == 16
    assert found["reference/local_lm_train_train_mauve"] == mauve(stories[20:36], stories[36:52], scorer).score


def test_keys_of_references_for_the_test(scorer, stories):
    found = reference_metrics(stories[:20], stories[20:], scorer, split="test", index=NgramIndex(stories[:20]))
    published = {
        "test_perplexity",
        "local_lm_train_test_mauve",
        "local_lm_train_train_mauve",
        "test_diversity",
        "test_memorization",
        "test_unique_wordcount",
        *(f"test_{key}" for key in REPETITION),
    }
    assert {f"reference/{key}" for key in published} <= set(found)
    assert found["reference/test_memorization"] == 1


def test_references_with_too_little_training_text(scorer, stories):
    found = reference_metrics(stories[:10], stories[10:21], scorer, split="val")
    assert "reference/local_lm_train_train_mauve" not in found  # one text is left for the second half
    assert 0 <= found["reference/local_lm_train_val_mauve"] <= 1


def test_reconstruction(scorer, stories):
    found = evaluate_reconstruction(stories, stories, scorer, prefix="autoencoder/beam/")
    assert found["autoencoder/beam/bleu"] == pytest.approx(100) and found["autoencoder/beam/exact_match"] == 1
    assert {f"autoencoder/beam/{key}" for key in ("perplexity", "rouge1", "rouge2", "rougeL", "rougeLsum")} <= set(
        found
    )
    half = evaluate_reconstruction([*stories[:40], *[""] * 40], stories)
    assert half["exact_match"] == 0.5 and half["empty"] == 40 and "perplexity" not in half


def test_pairs(scorer, stories):
    references = stories[:6]
    candidates = [["wrong words", text, text] for text in references]
    found = evaluate_pairs(candidates, references, stories, scorer, prefix="model/seq2seq/test/")
    got = {key.removeprefix("model/seq2seq/test/"): value for key, value in found.items()}
    rouges = {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    for kind in ("", "oracle_", "mbr_", "stem_", "chance_"):
        assert {kind + name for name in rouges} <= set(got)
    assert got["rouge2"] == 0 and got["oracle_rouge2"] == 1 and got["mbr_rouge2"] == 1
    assert got["mbr_sacrebleu"] == pytest.approx(100) and got["sacrebleu"] < 1
    assert set(got) >= TEXT_KEYS and "bertscore" not in got
    assert found["protocol"]["candidates"] == 3
    translated = evaluate_pairs(candidates, references, stories, None, tokenizer="intl")
    assert translated["mbr_sacrebleu"] == pytest.approx(100) and translated["protocol"]["bleu_tokenizer"] == "intl"


def test_pairs_are_told_from_their_references(stories):
    copies = evaluate_pairs([[text] for text in stories], stories, None, None, prefix="model/")
    assert copies["model/linear_auc"] == 0.5 and not any("mbr_linear_auc" in key for key in copies)
    lower = [[text.lower(), text] for text in stories]
    several = [[text, "Another."] for text in stories]
    found = evaluate_pairs(lower, several, None, None)["linear_auc"]
    drawn = one_of_each(several, 42)
    assert 0.3 < drawn.count("Another.") / len(drawn) < 0.7
    assert found == linear_auc([row[0] for row in lower], drawn, paired=True)["linear_auc"] > 0.9
    assert math.isnan(evaluate_pairs([["a"]], ["a"], None, None)["linear_auc"])
    without = evaluate_pairs(lower, None, None, None)
    assert "linear_auc" not in without and "linear_auc" in without["protocol"]["skipped"][0]


def test_pairs_of_empty_candidates(stories):
    found = evaluate_pairs([["", ""], ["", "a"]], ["a b", "a"], stories, None)
    assert found["empty"] == 2 and found["rouge1"] == 0
    assert math.isnan(evaluate_pairs([], [], stories, None)["rouge1"])
    with pytest.raises(ValueError, match="1 rows of candidates for 2 references"):
        evaluate_pairs([["a"]], ["a", "b"], stories, None)


def test_metrics_are_aggregated_over_seeds():
    runs = [{"a": 1.0, "b": math.nan, "protocol": {"n": 3}}, {"a": 3.0, "b": 2.0, "protocol": {"n": 3}, "c": 1}]
    found = over_seeds(runs)
    assert found["a"] == {"mean": 2.0, "std": pytest.approx(math.sqrt(2)), "values": [1.0, 3.0]}
    assert found["b"]["mean"] == 2.0 and found["b"]["std"] == 0
    assert "c" not in found
    assert found["protocol"] == {"runs": [{"n": 3}, {"n": 3}]}
    assert over_seeds([]) == {}
    assert math.isnan(over_seeds([{"a": math.nan}])["a"]["mean"])


def test_keys_of_a_seed():
    assert with_seed_suffix({"a": 1, "protocol": {}}, 42) == {"a_seed42": 1, "protocol": {}}


def test_protocol_names_the_smallest_comparison(scorer, stories):
    found = evaluate_texts(stories, {"val": stories[:20], "train": stories}, stories, scorer)
    assert found["protocol"]["buckets"] == 2
    assert protocols.protocol(None, 3)["comparable"] is False

"""Statistics of a corpus under a tokenizer, and warnings about bad values."""

from __future__ import annotations

import json
import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset_utils import corpus_stats as module
from dataset_utils.catalog import DatasetSpec
from dataset_utils.corpus import Corpus
from dataset_utils.corpus_stats import compute_corpus_stats, format_table
from dataset_utils.splits import Split


@pytest.fixture(scope="module")
def tokenizer():
    """Two words, <s> before and </s> after."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def corpus_of(train: Split, valid: Split | None = None, test: Split | None = None, names=("no", "yes")) -> Corpus:
    valid = valid or Split(["b b"], train.labels and [0], train.sources and ["a"])
    return Corpus("hand", {"train": train, "valid": valid, "test": test or valid}, DatasetSpec(), ["a note"], names)


def test_statistics_of_a_corpus_equal_those_counted_by_hand(tokenizer) -> None:
    train = Split(["a b", "a b", "a a a a a", "c"], [0, 0, 1, 1])
    found = compute_corpus_stats(corpus_of(train, Split(["a b", "b"]), Split(["a"])), tokenizer, max_length=6)
    figures = found["splits"]["train"]
    assert (
        figures["rows"] == figures["measured"] == 4 and figures["tokens"]["100"] == 7 and figures["tokens"]["50"] == 4
    )
    assert figures["truncated"] == 1 / 4 and figures["unknown"] == 1 / 10 and figures["duplicates"] == 1 / 4
    assert figures["labels"] == {"no": 2, "yes": 2} and "in_training" not in figures
    assert found["splits"]["valid"]["in_training"] == 1 / 2 and found["splits"]["test"]["in_training"] == 0
    shown = format_table(found)
    assert "25.00%" in shown and "no 2, yes 2" in shown and "every n-th" not in shown
    assert json.loads(json.dumps(found)) == found


def test_sources_have_statistics_beside_their_texts(tokenizer) -> None:
    train = Split(["a", "a", "b", "a"], None, ["a a a", "b", "c", "b"])
    test = Split(["a", "b"], None, ["b", "b"])
    found = compute_corpus_stats(corpus_of(train, test=test), tokenizer, 10, max_source_length=4)["splits"]
    assert found["train"]["source"]["truncated"] == 1 / 4 and found["train"]["source"]["unknown"] == 1 / 6
    assert found["train"]["duplicates"] == 1 / 4  # (b, a) alone comes twice, though a comes three times
    assert found["test"]["in_training"] == 1 / 2
    assert (
        compute_corpus_stats(corpus_of(train, test=test), tokenizer, 10)["splits"]["train"]["source"]["truncated"] == 0
    )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            Split(["a a a a a a a", "b"]),
            None,
            "50.0% of the train texts are longer than 6 tokens .* --max_seq_len",
        ),
        (Split(["a c", "b"]), None, "33.3% of the tokens of train are unknown to the tokenizer"),
        (Split(["a", "b", "a"]), None, "33.3% of the train rows are copies"),
        (Split(["a", "b"]), Split(["a", "b b"]), "50.0% of the test rows are also in the training split"),
        (Split(["a", "b"]), None, "only 2 training texts"),
        (Split(["a", "b"]), Split(["a"] * 99), "only 99 test texts"),
        (Split(["a", "b"], [0, 1]), Split(["a", "a b"], [1, 1]), "all test rows have the same class"),
        (Split(["a"] * 50, [0] * 49 + [1]), None, r"rarest class of train has 1 of 50 rows \(yes\)"),
        (Split(["a"], None, ["a a a a a a"]), None, "100.0% of the sources of train are longer than 6 tokens"),
        (Split(["a"], None, ["c"]), None, "100.0% of the tokens in the sources of train are unknown"),
    ],
)
def test_a_bad_value_gives_one_warning_of_one_line(tokenizer, train: Split, test: Split | None, message: str) -> None:
    found = compute_corpus_stats(corpus_of(train, test=test), tokenizer, 6, max_source_length=6)
    assert sum(bool(re.search(message, line)) for line in found["warnings"]) == 1, found["warnings"]
    assert all("\n" not in line and "{" not in line for line in found["warnings"])
    assert format_table(found).count("warning: ") == len(found["warnings"])


def test_good_values_give_no_warning(tokenizer) -> None:
    texts = [" ".join("ab"[int(bit)] for bit in f"{i:013b}") for i in range(5000)]
    labels = [i % 2 for i in range(5000)]
    parts = [Split(texts[i:j], labels[i:j]) for i, j in ((0, 4000), (4000, 4500), (4500, 5000))]
    assert compute_corpus_stats(corpus_of(*parts), tokenizer, 16)["warnings"] == []


def test_large_splits_are_tokenized_in_part_and_the_table_notes_it(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_MEASURED", 10)
    found = compute_corpus_stats(corpus_of(Split(["a"] * 25)), tokenizer, 6)
    assert found["splits"]["train"]["measured"] == 9 and found["splits"]["train"]["rows"] == 25
    assert found["splits"]["train"]["duplicates"] == 24 / 25 and "every n-th text, at most 10" in format_table(found)


def test_texts_and_sources_that_stand_in_other_splits_are_counted_apart() -> None:
    train = Split(["a", "b", "c", "d"], None, ["1", "1", "2", "3"])
    valid = Split(["new", "a", "new too", "x"], None, ["1", "2", "4", "5"])
    test = Split(["new", "b"], None, ["5", "5"])
    found = compute_corpus_stats(corpus_of(train, valid, test), None, None)
    splits = found["splits"]
    assert splits["valid"]["in_training"] == 0 and splits["valid"]["texts_in_training"] == 1 / 4
    assert splits["valid"]["source"]["texts_in_training"] == 1 / 2 and "texts_in_valid" not in splits["valid"]
    assert splits["test"]["texts_in_training"] == splits["test"]["texts_in_valid"] == 1 / 2
    assert splits["test"]["source"] == {"different": 1 / 2, "texts_in_training": 0, "texts_in_valid": 1}
    assert splits["train"]["source"] == {"different": 3 / 4} and splits["train"]["different"] == 1
    warned = "\n".join(found["warnings"])
    assert "50.0% of the sources of valid are also in the training split" in warned
    assert "100.0% of the test rows are also in the validation split" in warned
    lines = format_table(found).splitlines()
    assert lines[4].split() == ["valid", "4", "0.00%", "25.00%"] and lines[5].split() == ["source", "0.00%", "50.00%"]

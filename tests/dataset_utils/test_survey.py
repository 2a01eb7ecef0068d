"""The survey counts what a tokenizer makes of a corpus."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset_utils.corpus import Corpus, Split
from dataset_utils.registry import DatasetSpec
from dataset_utils.survey import print_survey, survey


def test_survey_of_a_corpus_counted_by_hand(capsys) -> None:
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "b": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
    train = Split(["a b", "a b", "a a a a a", "c"], [0, 0, 1, 1])
    splits = {"train": train, "valid": Split(["a b", "b"]), "test": Split(["a"])}
    corpus = Corpus("hand", splits, DatasetSpec(), ["a note"], ("no", "yes"))
    found = survey(corpus, fast, max_length=6)
    figures = found["splits"]["train"]
    assert (
        figures["rows"] == figures["measured"] == 4 and figures["tokens"]["100"] == 7 and figures["tokens"]["50"] == 4
    )
    assert figures["truncated"] == 1 / 4 and figures["unknown"] == 1 / 10 and figures["duplicates"] == 1 / 4
    assert figures["labels"] == {"no": 2, "yes": 2} and "in_training" not in figures
    assert found["splits"]["valid"]["in_training"] == 1 / 2 and found["splits"]["test"]["in_training"] == 0
    print_survey(found)
    shown = capsys.readouterr().out
    assert "25.00%" in shown and "note: a note" in shown and "no 2, yes 2" in shown

from __future__ import annotations

import math
import random

import pytest
import sacrebleu

from evaluation import mbr
from evaluation.overlap import bertscore, bleu, exact_match, rouge, rouge_each, self_bleu, sentence_bleu

TEXTS = [
    "the cat sat on the mat",
    "the cat sat on a mat",
    "a dog ran to the river",
    "the the the the",
    "one dog ran",
    "hello",
]


def test_bleu_is_case_sensitive_and_of_the_whole_corpus():
    assert bleu(TEXTS[:3], TEXTS[:3]) == pytest.approx(100)
    assert bleu(["The Cat Sat On The Mat"], TEXTS[:1]) == 0
    assert bleu(TEXTS[:2], TEXTS[1:3]) == pytest.approx(sacrebleu.corpus_bleu(TEXTS[:2], [TEXTS[1:3]]).score)


def test_bleu_equals_the_value_computed_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; as long as the reference
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["the cat sat on a mat"], ["the cat sat on the mat"]) == pytest.approx(expected)


def test_rouge_equals_the_value_computed_by_hand():
    found = rouge_each("the cat sat on a mat", "the cat sat on the mat")
    assert found["rouge1"] == pytest.approx(5 / 6)
    assert found["rouge2"] == pytest.approx(3 / 5)
    assert found["rougeL"] == found["rougeLsum"] == pytest.approx(5 / 6)
    assert rouge(["the cats"], ["the cat"])["rouge1"] == pytest.approx(1 / 2)
    assert rouge(["the cats"], ["the cat"], stem=True)["rouge1"] == 1


def test_exact_match():
    assert exact_match(["a ", "b", ""], ["a", "c", ""]) == pytest.approx(2 / 3)


def test_overlap_of_empty_texts_and_of_no_texts():
    # an empty prediction has no n-gram, but makes the corpus shorter than its references: 4 of 8 words
    assert bleu(["", "a dog ran home"], ["a cat sat here", "a dog ran home"]) == pytest.approx(
        100 * math.exp(1 - 8 / 4)
    )
    assert bleu(["", "a dog"], ["a cat sat here", "a dog"]) == 0  # no trigram
    assert rouge([""], ["a"])["rougeL"] == 0
    assert sentence_bleu("", "a") == 0
    assert math.isnan(bleu([], [])) and math.isnan(exact_match([], [])) and math.isnan(rouge([], [])["rouge1"])
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        bleu(["a", "b"], ["a"])


def test_self_bleu_equals_sacrebleu_text_by_text():
    generator = random.Random(0)
    texts = TEXTS + [" ".join(generator.choices("abcde.", k=generator.randint(1, 12))) for _ in range(30)]
    each = [sacrebleu.sentence_bleu(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(each) / len(each))
    assert self_bleu([*texts, "", " "]) == pytest.approx(sum(each) / len(each))


def test_self_bleu_ends():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(100)
    assert self_bleu(["a b c d e", "v w x y z"]) < 10
    assert math.isnan(self_bleu(["a"])) and math.isnan(self_bleu(["", "a b"]))


def test_mbr_selects_the_candidate_most_similar_to_the_others():
    row = ["a dog ran to the river", "the cat sat on the mat", "the cat sat on a mat", "the cat sat on the rug"]
    for utility in ("rouge1", "rouge2", "rougeL", "rougeLsum", "sacrebleu", "chrf"):
        assert mbr.mbr_select([row, row[:1], ["", ""]], utility) == [row[1], row[0], ""]
    with pytest.raises(ValueError, match="utility"):
        mbr.mbr_select([row], "taste")


def test_mbr_by_exact_match_counts_votes_and_by_bertscore_needs_its_model(bert_folder):
    assert mbr.mbr_select([["a", "b", "c", "b"], ["x", "y"]], "exact_match") == ["b", "x"]
    row = ["the cat sat", "a dog ran far away", "the cat sat"]
    assert mbr.mbr_select([row, ["alone"]], "bertscore", bertscore_model=bert_folder) == ["the cat sat", "alone"]


def test_every_pair_of_texts_is_compared_once(monkeypatch):
    seen = []

    def count(tokenizer, model, device):
        return lambda ones, others: seen.extend(zip(ones, others, strict=True)) or [0.0] * len(ones)

    monkeypatch.setitem(mbr.UTILITIES, "rouge1", count)
    assert mbr.mbr_select([["a", "a", "b"], ["a", "b"]], "rouge1") == ["a", "a"]
    assert sorted(seen) == [("a", "a"), ("a", "b"), ("b", "a")]


def test_oracle_by_bleu_takes_the_best_sentence():
    rows = [["a x c d e", "a b c d e"], ["one two", "three"]]
    assert mbr.oracle_bleu(rows, ["a b c d e", "three"]) == ["a b c d e", "three"]


def test_oracle_takes_the_best_of_each_row():
    found = mbr.oracle([["x", "a b"], ["c", "d"]], ["a b", "c d"])
    assert found["rouge1"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["rouge2"] == pytest.approx(1 / 2)
    assert math.isnan(mbr.oracle([], [])["rouge1"])


def test_shuffling_moves_every_prediction_to_another_example():
    texts = list("abcdefgh")
    assert mbr.shuffle_predictions(texts, 1) == mbr.shuffle_predictions(texts, 1) != texts
    assert sorted(mbr.shuffle_predictions(texts, 1)) == texts == list("abcdefgh")
    for seed in range(20):  # chance must not contain a right answer
        assert all(a != b for a, b in zip(mbr.shuffle_predictions(texts, seed), texts, strict=True))
    assert mbr.shuffle_predictions(["alone"], 1) == ["alone"] and mbr.shuffle_predictions([], 1) == []


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT with a word tokenizer that states no length limit."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        )
    ).save_pretrained(folder)
    return str(folder)


def test_bertscore_of_a_local_model(bert_folder):
    same = bertscore(TEXTS, TEXTS, bert_folder)
    assert same["bertscore_f1"] == pytest.approx(1, abs=1e-4)
    half = bertscore([TEXTS[0], ""], [TEXTS[0], TEXTS[1]], bert_folder)
    assert half["bertscore_f1"] == pytest.approx(0.5, abs=1e-4)
    assert bertscore([""], ["a"], bert_folder)["bertscore_recall"] == 0
    assert math.isnan(bertscore([], [], bert_folder)["bertscore_f1"])
    assert bertscore(["the cat"], ["a dog"], bert_folder)["bertscore_f1"] < 1

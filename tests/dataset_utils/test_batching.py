"""Token tables hold the ids of the tokenizer; batches hold the rows of a table, padded and masked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset_utils.batching import collate, tokenize
from utils.errors import UserError

WORDS = ["a", "b", "c", "d", "e", "f"]
PAD = 1


@pytest.fixture(scope="module")
def words_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def test_a_table_holds_token_ids_and_the_share_of_truncated_texts(words_tokenizer) -> None:
    table = tokenize(words_tokenizer, ["a b", "a b c d", "a b c d e", ""], max_length=6)
    assert table.lengths.tolist() == [4, 6, 6, 2] and table.ids.dtype == np.uint16
    assert table.truncated == 1 / 4  # four words fill six places exactly; five do not fit
    assert table.ids[2].tolist() == [0, 4, 5, 6, 7, 2]  # the end token stays


def test_a_table_made_in_chunks_is_the_same(words_tokenizer, monkeypatch) -> None:
    texts = ["a", "b c d", "a b c d e f", "d", "e f"]
    whole = tokenize(words_tokenizer, texts, 16)
    monkeypatch.setattr("dataset_utils.batching._CHUNK", 2)
    parts = tokenize(words_tokenizer, texts, 16)
    assert np.array_equal(whole.ids, parts.ids) and np.array_equal(whole.lengths, parts.lengths)


def test_collate_pads_and_masks(words_tokenizer) -> None:
    table = tokenize(words_tokenizer, ["a b c", "a", "b c"], 16)
    batch = collate(table, torch.tensor([1, 2]), PAD)
    assert batch.input_ids.tolist() == [[0, 4, 2, PAD], [0, 5, 6, 2]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False], [True] * 4]
    assert batch.input_ids.dtype == torch.int64 and batch.class_id is None
    wide = collate(table, [1, 2], PAD, pad_to=9)
    assert wide.input_ids.shape == (2, 9) and (wide.input_ids[:, 4:] == PAD).all()
    assert torch.equal(wide.attention_mask.sum(1), batch.attention_mask.sum(1))


def test_collate_returns_the_labels_of_its_rows(words_tokenizer) -> None:
    batch = collate(tokenize(words_tokenizer, ["a", "b", "c"], 8), [2, 0], PAD, 8, labels=[5, 6, 7])
    assert batch.class_id is not None and batch.class_id.tolist() == [7, 5]


def test_tokenize_refuses_no_texts_and_a_length_without_room(words_tokenizer) -> None:
    with pytest.raises(UserError, match="no texts"):
        tokenize(words_tokenizer, [], 8)
    with pytest.raises(UserError, match="--max_seq_len 3"):
        tokenize(words_tokenizer, ["a"], 2)

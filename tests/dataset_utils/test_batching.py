"""Tables hold what the tokenizer said, batches hold what the tables say, and every row comes once per epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset_utils.batching import collate, epoch_order, indices, tokenize
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


def test_a_table_holds_the_tokens_and_knows_what_was_cut(words_tokenizer) -> None:
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
    assert batch.input_ids.dtype == torch.int64 and batch.source_ids is None and batch.class_id is None
    wide = collate(table, [1, 2], PAD, pad_to=9)
    assert wide.input_ids.shape == (2, 9) and (wide.input_ids[:, 4:] == PAD).all()
    assert torch.equal(wide.attention_mask.sum(1), batch.attention_mask.sum(1))


def test_collate_brings_sources_and_labels_of_the_same_rows(words_tokenizer) -> None:
    table = tokenize(words_tokenizer, ["a", "b", "c"], 8)
    source = tokenize(words_tokenizer, ["d d", "e e e", "f"], 8)
    batch = collate(table, [2, 0], PAD, 8, source=source, source_pad_id=3, labels=[5, 6, 7])
    assert batch.source_ids is not None and batch.source_mask is not None and batch.class_id is not None
    assert batch.source_ids.tolist() == [[0, 9, 2, 3], [0, 7, 7, 2]] and batch.class_id.tolist() == [7, 5]
    assert batch.source_mask.sum(1).tolist() == [3, 4]


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 7), (3, 10), (1, 4), (12, 5)])
def test_every_row_comes_once_per_epoch(n: int, batch: int) -> None:
    steps = 4 * n
    stream = torch.cat([indices(5, step, batch, n) for step in range(steps)])
    assert len(stream) == steps * batch
    for epoch in range(steps * batch // n):
        seen = stream[epoch * n : (epoch + 1) * n]
        assert seen.sort().values.tolist() == list(range(n))
        assert torch.equal(seen, epoch_order(5, epoch, n))


def test_rows_of_a_step_are_a_pure_function() -> None:
    late = indices(1, 1000, 8, 100)
    assert torch.equal(late, indices(1, 1000, 8, 100))
    assert not torch.equal(late, indices(2, 1000, 8, 100))
    epoch_order(1, 80, 100).zero_()  # a caller may change what it was given
    assert torch.equal(late, indices(1, 1000, 8, 100))


def test_batching_refuses_in_one_line(words_tokenizer) -> None:
    with pytest.raises(UserError, match="no texts"):
        tokenize(words_tokenizer, [], 8)
    with pytest.raises(UserError, match="--max_seq_len 3"):
        tokenize(words_tokenizer, ["a"], 2)
    with pytest.raises(UserError, match="no rows"):
        indices(0, 0, 4, 0)

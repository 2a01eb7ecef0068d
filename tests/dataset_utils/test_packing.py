"""Packed pairs equal examples written by hand and the published rule applied token by token; and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dataset_utils.batching import collate
from dataset_utils.packing import pack_blocks, pack_pairs, pack_sources, reveal_prefix, truncate_pair
from utils.errors import UserError
from utils.seeding import StepRNG

UNK, START, END, SEP, PAD = range(5)
IDS = dict(end_id=END, separator_id=SEP)


@pytest.fixture(scope="module")
def tokenizer():
    """Words a, b, ... are ids 5, 6, ...; end and separator differ, so that a test can tell one from the other."""
    specials = ["[UNK]", "[CLS]", "[END]", "[SEP]", "[PAD]"]
    ids = {token: i for i, token in enumerate([*specials, *"abcdefghijklmnopqrstuvwxyz"])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [END]", special_tokens=[("[CLS]", START), ("[END]", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", eos_token="[END]", sep_token="[SEP]", cls_token="[CLS]"
    )


def letters(text: str) -> list[int]:
    return [5 + ord(c) - ord("a") for c in text]


def test_a_packed_pair_equals_the_one_written_by_hand(tokenizer):
    table = pack_pairs(tokenizer, ["a b c", "d"], ["x y", "z w v u"], 16, **IDS)
    batch = collate(table, [0, 1], PAD, pad_to=16)
    first = [START, *letters("abc"), END, SEP, START, *letters("xy"), END]
    second = [START, *letters("d"), END, SEP, START, *letters("zwvu"), END]
    assert batch.input_ids.tolist() == [first + [PAD] * 6, second + [PAD] * 6]
    assert batch.attention_mask.tolist() == [[True] * 10 + [False] * 6] * 2
    # the source with its end, and the separator: [START] a b c [END] [SEP]
    assert batch.known_mask.tolist() == [[True] * 6 + [False] * 10, [True] * 4 + [False] * 12]
    assert table.truncated == 0


def test_a_long_pair_is_truncated_on_its_longer_side(tokenizer):
    # budget 9: [START] a b c d e f g with [START] x y is 8 + 3, so the source loses two
    table = pack_pairs(tokenizer, ["a b c d e f g"], ["x y"], 12, **IDS)
    assert table.ids[0].tolist() == [START, *letters("abcde"), END, SEP, START, *letters("xy"), END]
    assert table.prefix_lengths.tolist() == [8] and table.lengths.tolist() == [12] and table.truncated == 1
    table = pack_pairs(tokenizer, ["a b c d"], ["x y z w v u t"], 11, **IDS)  # budget 8: 5 + 8 -> 4 + 4
    assert table.ids[0].tolist() == [START, *letters("abc"), END, SEP, START, *letters("xyz"), END]


def a_token_at_a_time(source: int, target: int, budget: int) -> tuple[int, int]:
    while source + target > budget:
        longer = max(source, target)
        source, target = source - (source == longer), target - (target == longer)
    return source, target


def test_truncation_equals_the_published_rule():
    lengths = np.arange(1, 20)
    source, target = (x.ravel() for x in np.meshgrid(lengths, lengths))
    for budget in range(2, 24):
        kept = truncate_pair(source, target, budget)
        expected = [a_token_at_a_time(s, t, budget) for s, t in zip(source.tolist(), target.tolist(), strict=True)]
        assert list(zip(*(x.tolist() for x in kept), strict=True)) == expected, budget


def test_a_source_longer_than_the_budget_is_refused_or_truncated(tokenizer):
    sources, targets = ["a", "a b c d e f g h i"], ["x", "x"]
    with pytest.raises(UserError, match=r"source of row 2 has 10 tokens, but --max_seq_len 10 leaves only 7"):
        pack_pairs(tokenizer, sources, targets, 10, **IDS)
    with pytest.raises(UserError, match="or pass --truncate_sources"):
        pack_sources(tokenizer, sources, 10, **IDS)
    table = pack_pairs(tokenizer, sources, targets, 10, truncate=True, **IDS)
    assert table.lengths.tolist() == [7, 10] and table.prefix_lengths.tolist() == [4, 7] and table.truncated == 0.5
    alone = pack_sources(tokenizer, sources, 10, truncate=True, **IDS)
    assert alone.prefix_lengths.tolist() == [4, 5]


def test_chunks_of_a_large_corpus_make_one_table(tokenizer, monkeypatch):
    sources, targets = ["a", "a b c", "b", "c c"] * 3, ["x", "y", "x y z w", "z"] * 3
    whole = pack_pairs(tokenizer, sources, targets, 20, **IDS)
    monkeypatch.setattr("dataset_utils.packing._CHUNK", 2)
    parts = pack_pairs(tokenizer, sources, targets, 20, **IDS)
    for name in ("ids", "lengths", "prefix_lengths"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    with pytest.raises(UserError, match="source of row 5 has 10 tokens"):
        pack_pairs(tokenizer, [*["a"] * 4, "a b c d e f g h i"], ["x"] * 5, 10, **IDS)


def test_a_packed_source_leaves_room_for_its_target(tokenizer):
    table = pack_sources(tokenizer, ["a b", "c"], 12, **IDS)
    batch = collate(table, [0, 1], PAD, 12)
    assert batch.attention_mask.all() and batch.known_mask.sum(1).tolist() == [5, 4]
    assert batch.input_ids[0, :5].tolist() == [START, *letters("ab"), END, SEP]
    table = pack_sources(tokenizer, ["a b", "c"], 12, target_lengths=[3, 99], **IDS)
    assert table.lengths.tolist() == [8, 12]
    # these are the first tokens of a pair
    pair = pack_pairs(tokenizer, ["a b"], ["x"], 12, **IDS)
    assert pair.prefix_lengths[0] == table.prefix_lengths[0] and pair.ids[0, :5].tolist() == table.ids[0, :5].tolist()


def test_a_tokenizer_without_an_end_token_loses_no_token(tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(tokenizer.backend_tokenizer.model), pad_token="[PAD]")
    plain.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    table = pack_pairs(plain, ["a b"], ["x y"], 12, **IDS)
    assert table.ids[0].tolist() == [*letters("ab"), END, SEP, *letters("xy"), END]


def test_running_text_is_cut_into_full_blocks(tokenizer):
    table = pack_blocks(tokenizer, ["a b", "c d e", "f"], 5)  # 4 + 5 + 3 tokens
    assert table.ids.tolist() == [[START, *letters("ab"), END, START], [*letters("cde"), END, START]]
    assert table.lengths.tolist() == [5, 5] and table.prefix_lengths is None
    with pytest.raises(UserError, match="have 3 tokens, fewer than one block of 8"):
        pack_blocks(tokenizer, ["a"], 8)


def test_the_known_prefix_depends_on_seed_step_and_row(tokenizer):
    n, length = 4000, 20
    table = pack_blocks(tokenizer, ["a b c d e f g h"] * 20, length)
    batch = collate(table, [i % len(table) for i in range(n)], PAD)
    uniform = StepRNG(0, 7, n, 0, n).uniform("prefix")
    whole = reveal_prefix(batch, uniform)
    begun = whole.known_mask.sum(1)
    assert begun.min() == 0 and begun.max() == 9  # [0, 10)
    torch.testing.assert_close(torch.bincount(begun) / n, torch.full((10,), 0.1), atol=0.02, rtol=0)
    assert not (~whole.known_mask[:, :-1] & whole.known_mask[:, 1:]).any(), "the known prefix has no gap"
    part = reveal_prefix(batch[100:200], StepRNG(0, 7, n, 100, 200).uniform("prefix"))
    assert torch.equal(part.known_mask, whole.known_mask[100:200])
    assert batch.known_mask is None


def test_a_length_too_short_for_a_pair_is_refused(tokenizer):
    with pytest.raises(UserError, match="--max_seq_len 4 is too short for a pair: give 5"):
        pack_pairs(tokenizer, ["a"], ["b"], 4, **IDS)

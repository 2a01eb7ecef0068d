"""Pretraining of a small language model: tokenizers, corruption of the encoder input, the model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from dataset_utils import synthetic_stories
from latent_models.language_models import LanguageModel
from latent_models.pretraining.corruption import mask_spans, random_tokens
from latent_models.pretraining.options import PretrainingOptions
from latent_models.pretraining.small_bart import small_bart
from latent_models.tokenizers.training import SPECIAL, train_tokenizer
from utils.errors import UserError

OPTIONS = PretrainingOptions(d_model=16, layers=1, heads=2, max_seq_len=20)
MASK_ID = SPECIAL.index("<mask>")

# ------------------------------------------------------------------------------------------------------- tokenizers


def round_trip(tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


ANY_TEXT = [
    "The dog ran home.",
    "  two  blanks,\ttabs\nand lines ",
    "naïve Zoë — “¿qué?” … 東京 🙂👩‍👩‍👧 \u200b e\u0301",
    "don't can't won't I'm they're ' n ' \"",
    "1,000.50 % [x](y) <a> & @#$^*~`|\\ snake_case",
    "",
]


@pytest.mark.parametrize("text", ANY_TEXT)
def test_subword_tokenizers_round_trip_any_text(texts, text):
    tokenizer = train_tokenizer(texts, "bpe", 300, 64)
    assert round_trip(tokenizer, text) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


WELL_SET = [
    "The dog ran home.",
    "A cat sat down, and it slept all day!",
    "What? No; yes: (he said) so...",
    "It's a well-known rule: don't pay 1,000 or 3.5 euros.",
    "Zoë naïve 東京 über",
    "one",
]


@pytest.mark.parametrize("text", WELL_SET)
def test_word_tokenizers_restore_punctuation(text):
    tokenizer = train_tokenizer(WELL_SET, "word", 100, 64)
    assert round_trip(tokenizer, text) == text


def test_an_unknown_word_is_one_unknown_token():
    tokenizer = train_tokenizer(["The dog ran home."], "word", 100, 64)
    ids = tokenizer("The zebra ran home.").input_ids
    assert ids.count(tokenizer.unk_token_id) == 1 and len(ids) == len(tokenizer("The dog ran home.").input_ids)


def test_the_synthetic_corpus_round_trips(tmp_path):
    synthetic_stories.write(tmp_path, train=200, valid=10, test=10)
    stories = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    tokenizer = train_tokenizer(stories, "word", 2000, 64)
    assert [round_trip(tokenizer, story) for story in stories] == stories


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_saved_tokenizer_is_reloaded_unchanged(kind, texts, tmp_path):
    tokenizer = train_tokenizer(texts, kind, 300, 12)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    for text in texts:
        assert again(text).input_ids == tokenizer(text).input_ids
        assert round_trip(again, text) == round_trip(tokenizer, text)
    assert again.model_max_length == 12
    assert len(again(texts[-1], truncation=True).input_ids) == 12


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_special_tokens_have_the_ids_of_bart_and_surround_a_text(kind, texts):
    tokenizer = train_tokenizer(texts, kind, 300, 64)
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    ids = tokenizer("Yes.").input_ids
    assert ids[0] == tokenizer.bos_token_id == 0 and ids[-1] == tokenizer.eos_token_id == 2
    assert all(i >= len(SPECIAL) for i in ids[1:-1])
    pair = tokenizer("Yes.", "The dog ran home.").input_ids
    assert pair.count(2) == 3 and pair.count(0) == 1
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id) == (1, 3, 4)


# ------------------------------------------------------------------------------------------------------- corruption


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def runs(hidden: torch.Tensor) -> int:
    """Number of unbroken runs of True in the rows of (B, T)."""
    return int((hidden & ~torch.nn.functional.pad(hidden, (1, 0))[:, :-1]).sum())


@pytest.mark.parametrize("share, mean_span", [(0.1, 3.0), (0.3, 3.0), (0.15, 1.0), (0.2, 8.0)])
def test_masked_spans_have_the_requested_share_and_mean_length(share, mean_span):
    B, T = 400, 200
    ids, mask = torch.full((B, T), 9), torch.ones(B, T, dtype=torch.bool)
    hidden = mask_spans(ids, mask, len(SPECIAL), MASK_ID, share, mean_span, uniform(2, B, T)) == MASK_ID
    assert hidden.float().mean() == pytest.approx(share, rel=0.03)
    assert hidden[:, 0].float().mean() == pytest.approx(share, abs=0.05)  # from the first token on
    # a run ends where a span ends and no other starts: with probability (1 - on)(1 - start)
    on = 1 - 1 / mean_span
    start = share * (1 - on) / (1 - share * on)
    assert float(hidden.sum()) / runs(hidden) == pytest.approx(1 / ((1 - on) * (1 - start)), rel=0.05)


def test_masking_leaves_special_tokens_padding_and_the_input_unchanged():
    B, T = 50, 30
    ids = torch.randint(5, 100, (B, T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) < torch.randint(3, T, (B, 1), generator=torch.Generator().manual_seed(2))
    ids = torch.where(mask, ids, 1)
    ids[:, 0] = 0
    before = ids.clone()
    seen = mask_spans(ids, mask, len(SPECIAL), MASK_ID, 0.5, 3.0, uniform(2, B, T))
    changed = seen != ids
    assert torch.equal(ids, before) and changed.any()
    assert (seen[changed] == MASK_ID).all() and (ids[changed] >= len(SPECIAL)).all() and mask[changed].all()
    assert torch.equal(mask_spans(ids, mask, len(SPECIAL), MASK_ID, 0.0, 3.0, uniform(2, B, T)), ids)
    everything = mask_spans(ids, mask, len(SPECIAL), MASK_ID, 1.0, 3.0, uniform(2, B, T))
    assert (everything[ids >= len(SPECIAL)] == MASK_ID).all()


def test_masked_positions_do_not_depend_on_padding():
    ids, mask, u = torch.full((4, 12), 9), torch.ones(4, 12, dtype=torch.bool), uniform(2, 4, 20)
    longer = torch.nn.functional.pad(ids, (0, 8), value=1), torch.nn.functional.pad(mask, (0, 8))
    short = mask_spans(ids, mask, 5, MASK_ID, 0.4, 3.0, u[..., :12])
    assert torch.equal(mask_spans(*longer, 5, MASK_ID, 0.4, 3.0, u)[:, :12], short)


def test_random_tokens_keep_special_tokens_and_use_every_ordinary_token():
    ids = torch.tensor([[0] + [9] * 996 + [2, 1, 1]] * 3)
    random = random_tokens(ids, len(SPECIAL), 50, uniform(3, 1000))
    ordinary = ids >= len(SPECIAL)
    assert torch.equal(random[~ordinary], ids[~ordinary])
    assert set(random[ordinary].tolist()) == set(range(len(SPECIAL), 50))
    edge = torch.tensor([[1.0 - 2**-24, 0.0]])  # the ends of [0, 1)
    assert random_tokens(torch.tensor([[9, 9]]), len(SPECIAL), 50, edge).tolist() == [[49, 5]]


# -------------------------------------------------------------------------------------------------------- the model


def test_a_small_bart_is_an_ordinary_language_model(texts, tmp_path):
    tokenizer = train_tokenizer(texts, "word", 100, OPTIONS.max_seq_len)
    torch.manual_seed(0)
    model = LanguageModel(small_bart(OPTIONS, tokenizer), tokenizer, "small", frozen=False).eval()
    model.save_pretrained(tmp_path)
    loaded = LanguageModel.from_pretrained(str(tmp_path))
    assert loaded.fingerprint() == model.fingerprint()
    assert (loaded.dim, loaded.max_length, loaded.family) == (16, 20, model.family)
    tokens = loaded.tokenize(texts, 20)
    states = loaded.encode(tokens.input_ids, tokens.attention_mask.bool())
    assert len(loaded.generate(states, tokens.attention_mask, max_length=20)) == len(texts)  # the longest fits


def test_a_small_bart_learns_to_copy(texts):
    """The loss falls in a few steps: gradients reach every parameter, and labels equal the input."""
    tokenizer = train_tokenizer(texts, "word", 100, OPTIONS.max_seq_len)
    torch.manual_seed(0)
    model = LanguageModel(small_bart(OPTIONS, tokenizer), tokenizer, "small", frozen=False)
    tokens = model.tokenize(texts, 20)
    ids, mask = tokens.input_ids, tokens.attention_mask.bool()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        loss = model(ids, ids, mask).mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 3.0 and loss.item() < 0.3
    model.eval()
    states = model.encode(ids, mask)
    written = model.generate(states, mask, max_length=20, do_sample=False, num_beams=1)
    assert written == [tokenizer.decode(row, skip_special_tokens=True) for row in ids]


def test_inner_products_of_sinusoidal_positions_depend_on_distance_only(texts):
    tokenizer = train_tokenizer(texts, "word", 50, 20)
    model = small_bart(replace(OPTIONS, pos_init="sinusoidal"), tokenizer).model
    tables = [half.embed_positions.weight[half.embed_positions.offset :] for half in (model.encoder, model.decoder)]
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=0)
    assert tables[0].shape == (20, 16) and tables[0].requires_grad
    # inner products depend on the distance of two positions only, and are largest for neighbors
    near = (tables[0][:-1] * tables[0][1:]).sum(1)
    far = (tables[0][:-5] * tables[0][5:]).sum(1)
    torch.testing.assert_close(near, near[:1].expand_as(near))
    assert near.min() > far.max()
    torch.testing.assert_close(tables[0].square().mean().sqrt(), torch.tensor(0.02), rtol=1e-3, atol=0)  # BART's


def test_a_width_not_divisible_by_the_heads_is_refused(texts):
    tokenizer = train_tokenizer(texts, "word", 100, 20)
    with pytest.raises(UserError, match="--d_model 18 is not divisible by --heads 4"):
        small_bart(PretrainingOptions(d_model=18), tokenizer)

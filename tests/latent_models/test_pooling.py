"""Poolings against computations that are written out, sentences of token ids, and scaling of latents."""

from __future__ import annotations

import math

import pytest
import torch

from latent_models.pooling import POOLINGS, LearnedPooling, make_pooling
from latent_models.sentences import (
    SplitTexts,
    TokenKinds,
    byte_alphabet,
    sentence_numbers,
    special_tokens_around,
    text_of_bytes,
)
from latent_models.spaces.scaling import LatentScaling
from tests.latent_models.tiny_encoders import byte_level, word_piece
from utils.errors import UserError

LENGTHS, DIM = (5, 1, 8), 4


@pytest.fixture
def ragged():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(LENGTHS), 8, DIM, generator=generator)
    return states, torch.arange(8) < torch.tensor(LENGTHS)[:, None]


def unit(x):
    return x / x.norm()


def test_one_vector_a_text(ragged):
    states, mask = ragged
    for name, expected in {
        "mean": lambda x: unit(x.mean(0)),
        "first": lambda x: x[0],
        "last": lambda x: x[-1],
    }.items():
        vectors, there = make_pooling(name, None, DIM)(states, mask)
        assert vectors.shape == (3, 1, DIM) and there.all()
        for row, n in enumerate(LENGTHS):
            torch.testing.assert_close(vectors[row, 0], expected(states[row, :n]))


@pytest.mark.parametrize("count", [1, 3, 6])
def test_segments(ragged, count):
    states, mask = ragged
    vectors, _ = make_pooling("segments", count, DIM)(states, mask)
    for row, n in enumerate(LENGTHS):
        for k in range(count):
            first, stop = math.floor(k * n / count), math.ceil((k + 1) * n / count)
            torch.testing.assert_close(vectors[row, k], unit(states[row, first:stop].mean(0)))


def test_learned_pooling_is_attention(ragged):
    states, mask = ragged
    torch.manual_seed(0)
    pooling = LearnedPooling(3, DIM)
    vectors, _ = pooling(states, mask)
    for row, n in enumerate(LENGTHS):
        x = torch.nn.functional.layer_norm(states[row, :n], (DIM,))
        for k in range(3):
            weights = (pooling.keys(x) @ pooling.queries[k] / DIM**0.5).softmax(0)
            found = weights @ pooling.values(x)
            expected = (found - found.mean()) / (found.var(unbiased=False) + 1e-5).sqrt()
            torch.testing.assert_close(vectors[row, k], expected)
    vectors.square().mean().backward()
    assert all(p.requires_grad for p in pooling.parameters())


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_changes_no_vector(name, ragged):
    states, mask = ragged
    torch.manual_seed(0)
    pooling = make_pooling(name, None, DIM)
    other = torch.where(mask[..., None], states, 1e4)
    torch.testing.assert_close(pooling(states, mask)[0], pooling(other, mask)[0])
    torch.testing.assert_close(pooling(states[:1, :5], mask[:1, :5])[0], pooling(states, mask)[0][:1])


def test_flags_that_contradict_each_other():
    with pytest.raises(UserError, match="--num_sentence_latents 3"):
        make_pooling("mean", 3, DIM)
    with pytest.raises(UserError, match="--pooling first"):
        make_pooling("first", None, DIM, is_causal=True)


TALES = [
    "Mr. Fox ran home. He slept! Did he dream?",
    'He said "no." Then he left.',
    "It cost 3.50 in all... Yes",
    "no end",
]
SENTENCES = [
    ["Mr. Fox ran home.", "He slept!", "Did he dream?"],
    ['He said "no."', "Then he left."],
    ["It cost 3.50 in all...", "Yes"],
    ["no end"],
]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "gpt2"])
def test_sentences_of_token_ids(kind):
    tokenizer = word_piece(TALES) if kind == "wordpiece" else byte_level(TALES, kind)
    around = special_tokens_around(tokenizer)
    pad = tokenizer.pad_token_id or 0
    rows = [tokenizer(text)["input_ids"] for text in TALES]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest) < torch.tensor(list(map(len, rows)))[:, None]
    numbers = sentence_numbers(ids, mask, TokenKinds.of(tokenizer))
    squeeze = (lambda text: text.lower().replace(" ", "")) if kind == "wordpiece" else (lambda text: text.strip())
    for row, number, expected in zip(ids, numbers, SENTENCES, strict=True):
        found = [tokenizer.decode(row[number == k]) for k in range(int(number.max()) + 1)]
        assert [squeeze(text) for text in found] == [squeeze(text) for text in expected]
    split = SplitTexts.of(ids, mask, TokenKinds.of(tokenizer), around, 2, pad)
    assert split.mask.sum(1).tolist() == [2, 2, 2, 1]
    assert len(split.input_ids) == 7
    second = split.input_ids[1][split.attention_mask[1]].tolist()  # the rest of the first text
    assert second[: len(around[0])] == around[0] and second[len(second) - len(around[1]) :] == around[1]
    text = tokenizer.decode(second, skip_special_tokens=True)
    assert squeeze(text) == squeeze("He slept! Did he dream?")


FOREIGN = [
    "Wait… Then he left the old house.",
    "He said “no.” Then she went away.",
    "«Ça va?» Puis il partit.",
    "今天下雨。我们在家！她说好。",
    "「行こう。」彼は言った。",
    "Das kostet 3.5 Euro… ja.",
]
OF_FOREIGN = [
    ["Wait…", "Then he left the old house."],
    ["He said “no.”", "Then she went away."],
    ["«Ça va?»", "Puis il partit."],
    ["今天下雨。", "我们在家！", "她说好。"],
    ["「行こう。」", "彼は言った。"],
    ["Das kostet 3.5 Euro…", "ja."],
]


def whole_words(texts, kind):
    """A BPE tokenizer that knows every word of the texts: of bytes, or with ▁ before words as SentencePiece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    if kind == "bytes":
        splitter, decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:  # SentencePiece, too, separates scripts: punctuation is no part of a word
        ends = [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
        splitter, decoder = pre_tokenizers.Sequence(ends), decoders.Metaspace(prepend_scheme="first")
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoder
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "wordpiece"])
def test_sentences_of_other_marks_and_scripts(kind):
    texts = [*FOREIGN, *TALES]
    tokenizer = word_piece(texts) if kind == "wordpiece" else whole_words(texts, kind)
    vocabulary = tokenizer.get_vocab()
    assert ("âĢ¦" in vocabulary) == (kind == "bytes"), "the text of a token is not what the vocabulary holds"
    if kind != "wordpiece":
        assert sum(token[0] in "Ġ▁" for token in vocabulary) > len(vocabulary) / 20, "blanks mark words"
    kinds = TokenKinds.of(tokenizer)
    for text, expected in zip([*FOREIGN, *TALES], [*OF_FOREIGN, *SENTENCES], strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        numbers = sentence_numbers(ids, torch.ones_like(ids, dtype=torch.bool), kinds)[0]
        found = [tokenizer.decode(ids[0][numbers == k]) for k in range(int(numbers.max()) + 1)]
        expected = [tokenizer.decode(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in expected]
        squeezed = [[part.replace(" ", "") for part in side] for side in (found, expected)]
        assert squeezed[0] == squeezed[1]


def test_tokens_of_bytes_are_read_as_text():
    from tokenizers import pre_tokenizers

    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert [text_of_bytes(token) for token in ("âĢ¦", "ãĢĤ", "Ġthe", "Ċ")] == ["…", "。", " the", "\n"]
    assert text_of_bytes("âĢ") == "âĢ", "a part of a character"
    assert text_of_bytes("<｜x｜>") == "<｜x｜>"


def test_standard_scaling_keeps_the_ratios_of_directions():
    x = torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.1]) + 5
    scaling = LatentScaling(3, "standard")
    assert not scaling.is_estimated
    scaling.estimate((part, None) for part in x.split(64))
    assert scaling.is_estimated and int(scaling.num_vectors) == 1000
    out = scaling(x).flatten(0, 1)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.square().mean(), torch.ones(()))
    spread, before = out.std(0), x.flatten(0, 1).std(0)
    torch.testing.assert_close(spread / spread[0], before / before[0])
    torch.testing.assert_close(scaling.inverse(scaling(x)), x)


def test_whitened_latents_have_the_identity_covariance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 2, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 2
    mask = torch.rand(800, 2, generator=generator) < 0.7
    scaling = LatentScaling(4, "whiten")
    scaling.estimate((part, there) for part, there in zip(x.split(50), mask.split(50), strict=True))
    out = scaling(x)[mask]
    torch.testing.assert_close(out.T.cov(correction=0), torch.eye(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaling.inverse(scaling(x)), x, atol=1e-4, rtol=1e-4)
    assert not scaling(x, mask)[~mask].any()
    again = LatentScaling(4, "whiten")
    again.load_state_dict(scaling.state_dict())
    assert torch.equal(again(x), scaling(x))


def test_half_whitened_latents_have_the_square_roots_of_the_variances():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    before = torch.tensor([9.0, 4.0, 1.0, 0.25])
    x = torch.randn(4000, 1, 4, generator=generator)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x[:, 0].T.cov(correction=0)).T)  # exactly white
    x = x * before.sqrt() @ directions.T - 3
    scaling = LatentScaling(4, "half_whiten")
    scaling.estimate((part, None) for part in x.split(50))
    found = (scaling(x)[:, 0] @ directions).T.cov(correction=0)
    torch.testing.assert_close(found, torch.diag(before.sqrt() / before.sqrt().mean()), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaling.inverse(scaling(x)), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "half_whiten", "whiten"])
def test_scaling_computes_in_float32(kind):
    x = torch.randn(400, 1, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 6) + 4
    scaling = LatentScaling(6, kind)
    scaling.estimate([(x, None)])
    half = x.bfloat16()
    expected = scaling(half.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scaling(half).dtype == torch.float32 and torch.equal(scaling(half), expected)
        assert torch.equal(scaling.inverse(half), scaling.inverse(half.float()))
        torch.testing.assert_close(scaling.inverse(scaling(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["standard", "half_whiten", "whiten"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_latents_that_are_not_finite_cannot_be_scaled(kind, value):
    x = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0))
    x[3, 0, 1] = value
    with pytest.raises(UserError, match="infinite or not a number"):
        LatentScaling(2, kind).estimate([(x, None)])


def test_equal_latents_cannot_be_scaled():
    for kind in ("standard", "half_whiten", "whiten"):
        with pytest.raises(UserError, match="are equal"):
            LatentScaling(2, kind).estimate([(torch.ones(5, 1, 2), None)])
    scaling = LatentScaling(2, "none")
    scaling.estimate([(torch.ones(5, 1, 2), None)])
    assert torch.equal(scaling(torch.ones(5, 1, 2)), torch.ones(5, 1, 2))

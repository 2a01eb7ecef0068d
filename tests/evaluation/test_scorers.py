from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from tokenizers import models, normalizers
from transformers import GPT2Config, GPT2LMHeadModel

from evaluation import scorers
from evaluation.local_lm import INFO_FILE, LocalLMOptions, _batches, _lr_factor, train_local
from evaluation.scorers import Scorer
from utils.errors import UserError

TEXTS = ["Ann saw a dog.", "", "Tom fed a cat. Then Tom went home.", "   ", "Eva"]


def naive_nll(scorer, text):
    """One text alone, one token at a time, without padding or masks."""
    ids = [scorer.start_id, *scorer.tokenizer(text)["input_ids"]]
    total = 0.0
    for i in range(1, len(ids)):
        logits = scorer.model(input_ids=torch.tensor([ids[:i]])).logits[0, -1].double()
        total -= torch.log_softmax(logits, -1)[ids[i]].item()
    return total, len(ids) - 1


def test_nll_equals_one_text_at_a_time(scorer):
    found = scorer.nll(TEXTS)
    for text, nll, count in zip(TEXTS, found.nll, found.tokens, strict=True):
        if text.strip():
            total, n = naive_nll(scorer, text)
            assert count == n
            assert nll == pytest.approx(total, rel=1e-4)
        else:
            assert count == 0 and math.isnan(nll)


def test_a_tokenizer_with_the_same_vocabulary_and_other_merges_is_another_scorer(scorer):
    def of(change) -> Scorer:
        tokenizer = copy.deepcopy(scorer.tokenizer)
        change(tokenizer.backend_tokenizer)
        return Scorer(scorer.model, tokenizer, "x", comparable=False)

    def no_merges(backend):
        backend.model = models.BPE(backend.get_vocab(), [])

    def lowercase(backend):
        backend.normalizer = normalizers.Lowercase()

    made = [of(change) for change in (lambda backend: None, no_merges, lowercase)]
    assert made[0].fingerprint == scorer.fingerprint
    assert len({one.fingerprint for one in made}) == 3
    assert len({tuple(sorted(one.tokenizer.get_vocab().items())) for one in made}) == 1


def test_uniform_model_has_the_vocabulary_as_its_perplexity(scorer):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(scorer.tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=1))
    torch.nn.init.zeros_(model.transformer.wte.weight)  # tied: every logit is 0
    flat = Scorer(model, scorer.tokenizer, "flat", comparable=False)
    found = flat.nll(["Ann saw a dog.", "Tom"])
    for nll, count in zip(found.nll, found.tokens, strict=True):
        assert nll / count == pytest.approx(math.log(len(scorer.tokenizer)), rel=1e-5)


def test_nll_does_not_depend_on_how_texts_are_batched(scorer, stories, monkeypatch):
    together = scorer.nll(stories)
    monkeypatch.setattr(scorers, "BATCH_TOKENS", 1)
    alone = scorer.nll(stories)
    assert together.tokens == alone.tokens
    np.testing.assert_allclose(together.nll, alone.nll, rtol=1e-5)


def test_features_are_the_last_hidden_state_of_the_last_token(scorer):
    found = scorer.features(TEXTS)
    assert found.shape == (5, 32) and found.dtype == np.float32
    for text, feature in zip(TEXTS, found, strict=True):
        ids = scorer.tokenizer(text)["input_ids"] if text.strip() else [scorer.start_id]
        states = scorer.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(feature, states[0, -1].detach().numpy(), atol=1e-5)


def test_features_equal_those_of_the_mauve_package(scorer, stories):
    from mauve.utils import featurize_tokens_from_model

    tokens = [scorer.tokenizer(text, return_tensors="pt")["input_ids"] for text in stories[:7]]
    theirs = featurize_tokens_from_model(scorer.model.base_model, tokens, batch_size=3)
    np.testing.assert_allclose(scorer.features(stories[:7]), theirs.numpy(), atol=1e-5)


def test_features_depend_on_max_length_tokens_only(scorer):
    long = "Ann saw a dog. Then Ann went home."
    cut = scorer.tokenizer.decode(scorer.tokenizer(long)["input_ids"][:4])
    np.testing.assert_allclose(scorer.features([long], max_length=4), scorer.features([cut], max_length=64), atol=1e-5)


def test_texts_longer_than_the_model_allows_are_truncated(scorer):
    found = scorer.nll(["Ann saw a dog. " * 50])
    assert found.tokens == [scorer.max_length - 1]
    assert math.isfinite(found.nll[0])


def test_no_texts_and_only_empty_texts(scorer):
    assert scorer.nll([]).nll == []
    assert scorer.features([]).shape == (0, 32)
    assert scorer.nll(["", " "]).tokens == [0, 0]
    same = scorer.features(["", " "])
    assert np.array_equal(same[0], same[1])


def test_features_are_cached(scorer, stories):
    assert scorer.features(stories) is scorer.features(list(stories))
    assert scorer.features(stories, max_length=3) is not scorer.features(stories)


def test_local_lm_is_marked_as_not_comparable(scorer, local_lm_folder):
    assert scorer.name == "local_lm" and not scorer.comparable
    metadata = json.loads((local_lm_folder / INFO_FILE).read_text())
    assert metadata["comparable"] is False and metadata["texts"] == 80


def test_local_lm_learns_word_order(scorer, stories):
    good, bad = scorer.nll(stories), scorer.nll([" ".join(reversed(text.split())) for text in stories])
    assert sum(good.nll) / sum(good.tokens) < 1.5 < sum(bad.nll) / sum(bad.tokens)


def test_local_lm_has_no_unknown_tokens(scorer):
    strange = "Zoë's naïve 猫 \U0001f600 ate 3.5 kg\nof it"
    assert scorer.tokenizer.decode(scorer.tokenizer(strange)["input_ids"]) == strange
    assert math.isfinite(scorer.nll([strange]).nll[0])


def test_local_lm_is_reused_and_trained_again_for_other_texts(tmp_path, stories):
    folder, lines = tmp_path / "s", []
    how = dict(width=16, layers=1, heads=1, steps=2, batch_size=4, max_length=32, progress=lines.append)
    train_local(stories, folder, **how)
    assert lines and "steps/s" in lines[0] and "left" in lines[0]
    lines.clear()
    before = scorers.load(folder).fingerprint
    train_local(stories, folder, **how)
    assert lines == []
    train_local(stories[:9], folder, **how)
    assert lines != [] and scorers.load(folder).fingerprint != before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_local_lm_is_deterministic_in_its_seed(tmp_path, stories):
    how = dict(width=16, layers=1, heads=1, steps=3, batch_size=4, max_length=32, progress=lambda line: None)
    one, two = (scorers.load(None, texts=stories, folder=tmp_path / name, **how) for name in "ab")
    other = scorers.load(None, texts=stories, folder=tmp_path / "c", **how, seed=1)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_local_lm_does_not_overwrite_other_folders(tmp_path, stories):
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(UserError, match="something other"):
        train_local(stories, tmp_path, steps=1)
    assert (tmp_path / "mine.txt").read_text() == "dear"


def test_loading_errors_are_one_line(tmp_path):
    for source in (str(tmp_path / "nothing"), "./nothing", "nobody/has-this"):
        with pytest.raises(UserError, match="scorer") as error:
            scorers.load(source)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--scorer"):
        scorers.load(None)
    with pytest.raises(UserError, match="empty"):
        train_local(["", " "], tmp_path / "x")


def test_the_published_scorer_is_recognized_by_its_layout(tmp_path, scorer):
    with torch.device("meta"):
        large = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=1280, n_head=20))
    small = Scorer(large, scorer.tokenizer, "gpt2-large", comparable=False)
    assert small.max_length == 1024
    assert not all(getattr(large.config, key, None) == value for key, value in scorers.PUBLISHED.items())
    large.config.n_layer = 36
    assert all(getattr(large.config, key, None) == value for key, value in scorers.PUBLISHED.items())


def test_batches_contain_every_row_once_within_the_budget():
    lengths = [5, 3000, 7, 9000, 1, 4096, 2048]
    batches = list(scorers.length_batches(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= scorers.BATCH_TOKENS


def test_training_batches_are_whole_epochs():
    options = LocalLMOptions(batch_size=8, steps=10)
    batches = _batches([i % 7 + 1 for i in range(40)], options)
    assert len(batches) == 10
    for epoch in (batches[:5], batches[5:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(40))


def test_learning_rate_rises_and_falls():
    factors = [_lr_factor(step, 100) for step in range(1, 101)]
    assert factors[9] == 1.0 and factors[0] == 0.1
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0 < factors[-1] < 1e-3


def test_which_scorer_the_flag_means(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENT_DIFFUSION_MODELS", str(tmp_path))
    assert scorers.source_of(None, or_default=True) is None  # nothing is unpacked: as it always was
    folder = tmp_path / "smollm2-135m"
    folder.mkdir()
    (folder / "pretrained.json").write_text(json.dumps({"name": "smollm2-135m", "sha256": {}}))
    assert scorers.source_of(None, or_default=True) == str(folder)
    assert scorers.source_of(None, or_default=False) is None  # during training
    assert scorers.source_of("local_lm", or_default=True) is None
    assert scorers.source_of("gpt2", or_default=True) == "gpt2"

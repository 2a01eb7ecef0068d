"""Language models of every family: states, logits, losses, texts, and errors of loading."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latent_models.families import FAMILIES
from latent_models.generation.decoding import DECODING, strategies
from latent_models.language_models import LanguageModel
from tests.latent_models.tiny_causal import add_special_tokens
from utils.errors import UserError

FAMILY_NAMES = sorted(FAMILIES)


@pytest.fixture
def batch(texts):
    """family's LanguageModel -> ids and boolean mask (B, T)."""

    def of(model):
        tokens = model.tokenize(texts, 40)
        return tokens.input_ids, tokens.attention_mask.bool()

    return of


# ------------------------------------------------------------------------------------------------ states and losses


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_states_have_the_width_of_the_config_and_do_not_depend_on_padding(language_model, batch, family):
    model = language_model(family)
    ids, mask = batch(model)
    states = model.encode(ids, mask)
    assert states.shape == (*ids.shape, model.dim) and model.dim == 16
    assert model.max_length == (48 if family.endswith("bart") else None)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model.encode(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(states[row, :length], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_logits_are_those_of_the_model_itself(language_model, batch, family):
    model = language_model(family)
    ids, mask = batch(model)
    logits = model.logits(model.encode(ids, mask), mask, ids)
    if family == "mbart":  # its own shift would move the last token to the front
        start = torch.full((len(ids), 1), model.start_id)
        inputs = {"decoder_input_ids": torch.cat([start, ids[:, :-1]], 1)}
    else:
        inputs = {"labels": ids}
    expected = model.model(input_ids=ids, attention_mask=mask.long(), **inputs).logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_the_loss_is_the_mean_over_the_tokens_of_each_text(language_model, batch, family):
    model = language_model(family)
    ids, mask = batch(model)
    states = model.encode(ids, mask)
    loss = model.reconstruction_loss(states, mask, ids, mask)
    log_p = model.logits(states, mask, ids).log_softmax(-1)
    for row, length in enumerate(mask.sum(1).tolist()):
        by_hand = -sum(log_p[row, t, ids[row, t]] for t in range(length)) / length
        torch.testing.assert_close(loss[row], by_hand, atol=1e-5, rtol=1e-5)
    assert loss.shape == (len(ids),)
    torch.testing.assert_close(model(ids, ids, mask), loss)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_padding_never_changes_a_loss(language_model, batch, family):
    model = language_model(family)
    ids, mask = batch(model)
    losses = model(ids, ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = ids[row : row + 1, :length]
        torch.testing.assert_close(
            losses[row : row + 1], model(alone, alone, mask[row : row + 1, :length]), atol=1e-5, rtol=1e-4
        )
    longer = torch.nn.functional.pad(ids, (0, 5), value=model.pad_id)
    more = model(longer, longer, torch.nn.functional.pad(mask, (0, 5)))
    torch.testing.assert_close(more, losses, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_an_untied_output_table_is_kept_and_not_scaled(tiny, tmp_path, batch, family):
    """Flan-T5 and mT5 tie no weights. transformers sets tie_word_embeddings to True, and T5 scales tied outputs."""
    folder = tmp_path / "untied"
    shutil.copytree(tiny(family), folder)
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    config.pop("scale_decoder_outputs", None)  # published files are older than this key
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = head = torch.randn(config["vocab_size"], config["d_model"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = LanguageModel.from_pretrained(str(folder), frozen=False)
    ids, mask = batch(model)
    hidden = []
    model.model.decoder.register_forward_hook(lambda *call: hidden.append(call[-1].last_hidden_state))
    logits = model.logits(model.encode(ids, mask), mask, ids)
    torch.testing.assert_close(logits, hidden[0] @ head.T, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again = LanguageModel.from_pretrained(str(tmp_path / "again"))
    torch.testing.assert_close(again.logits(again.encode(ids, mask), mask, ids), logits, atol=1e-4, rtol=1e-4)


def test_a_mask_of_all_true_is_no_mask(language_model):
    model = language_model()
    states, labels = torch.randn(2, 6, 16), torch.randint(5, 300, (2, 7))
    torch.testing.assert_close(
        model.logits(states, torch.ones(2, 6, dtype=torch.bool), labels), model.logits(states, None, labels)
    )


def test_float16_autocast_skips_a_family_that_would_overflow(language_model, batch):
    for family, changed in (("bart", True), ("t5", False)):
        model = language_model(family)
        ids, mask = batch(model)
        exact = model.logits(model.encode(ids, mask), mask, ids)
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model.logits(model.encode(ids, mask), mask, ids)
            assert len(model.generate(torch.randn(2, 3, 16).half(), max_length=4)) == 2
        assert torch.equal(logits.float(), exact) != changed


# ------------------------------------------------------------------------------------------------------------ texts


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("strategy", sorted(DECODING))
def test_generate_returns_a_text_per_row_and_changes_no_weights(language_model, batch, family, strategy):
    model = language_model(family)
    ids, mask = batch(model)
    states = model.encode(ids, mask)
    states_before, mask_before, options = states.clone(), mask.clone(), dict(DECODING[strategy])
    texts = model.generate(states, mask, max_length=9, **DECODING[strategy])
    assert len(texts) == len(ids) and all(isinstance(text, str) and text == text.strip() for text in texts)
    assert torch.equal(states, states_before) and torch.equal(mask, mask_before) and DECODING[strategy] == options
    if not options["do_sample"]:
        assert model.generate(states, mask, max_length=9, **DECODING[strategy]) == texts
        # states at padding are not read
        junk = torch.where(mask[..., None], states, 1e3)
        assert model.generate(junk, mask, max_length=9, **DECODING[strategy]) == texts
    assert len(model.generate(states[:1], None, max_length=3, **options)) == 1  # shorter than min_length


def test_greedy_decoding_ignores_the_generation_config_of_the_model(language_model, batch):
    """Published BART's generation_config.json sets beam search and forbids repeated trigrams."""
    model = language_model()
    ids, mask = batch(model)
    states = model.encode(ids, mask)
    plain = model.generate(states, mask, max_length=20, **DECODING["greedy"])
    model.model.generation_config.update(num_beams=4, no_repeat_ngram_size=2, early_stopping=True, min_length=12)
    assert model.generate(states, mask, max_length=20, **DECODING["greedy"]) == plain


def test_strategies_are_named_in_a_list():
    assert list(strategies("nucleus, beam")) == ["nucleus", "beam"]
    with pytest.raises(UserError, match="choose from beam, nucleus, greedy"):
        strategies("beam,bean")


# ----------------------------------------------------------------------------------------------------------- frozen


def test_a_frozen_model_neither_trains_nor_drops_out(language_model, batch):
    model = language_model()
    parent = nn.Sequential(model).train()
    assert parent.training and not any(module.training for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    ids, mask = batch(model)
    assert torch.equal(model.encode(ids, mask), model.encode(ids, mask))
    assert not model.encode(ids, mask).requires_grad
    states = torch.randn(len(ids), 5, 16, requires_grad=True)
    model.reconstruction_loss(states, None, ids, mask).sum().backward()  # gradients pass through the frozen decoder
    assert states.grad is not None and states.grad.abs().sum() > 0


def test_a_trainable_model_has_the_training_mode_of_its_parent(language_model, batch):
    model = language_model(frozen=False)
    assert model.train().model.training and not model.eval().model.training
    ids, mask = batch(model)
    model(ids, ids, mask).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# -------------------------------------------------------------------------------------------- fingerprint and saving


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_model_is_the_same_model(language_model, batch, family, tmp_path):
    model = language_model(family)
    model.save_pretrained(tmp_path)
    again = LanguageModel.from_pretrained(str(tmp_path))
    assert again.fingerprint() == model.fingerprint()
    ids, mask = batch(model)
    assert all(torch.equal(a, b) for a, b in zip(batch(again), (ids, mask), strict=True))
    assert torch.equal(again.encode(ids, mask), model.encode(ids, mask))


def test_the_fingerprint_depends_on_weights_and_vocabulary(language_model):
    model, other = language_model(), language_model()
    same = model.fingerprint()
    with torch.no_grad():
        next(other.parameters()).view(-1)[3].add_(1e-3)
    assert other.fingerprint() != same
    other = language_model()
    other.tokenizer.add_tokens(["unheard-of"])
    assert other.fingerprint() != same == model.fingerprint() == language_model(frozen=False).fingerprint()


# --------------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def copy(tiny, tmp_path) -> Callable[..., Path]:
    """A copy of a tiny model, with entries of config.json changed (None: taken out) and files removed."""

    def of(family: str = "bart", without: tuple[str, ...] = (), **changes) -> Path:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny(family), folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        for name in without:
            (folder / name).unlink()
        return folder

    return of


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("bart", dict(d_model=32), "config.json requires"),  # weights of another width
        ("bart", dict(encoder_layers=2), "lacks 16 weights"),
        ("bart", dict(vocab_size=200), "not of the same model"),
        ("bart", dict(pad_token_id=0), "pad_token_id"),
        ("bart", dict(eos_token_id=7), "eos_token_id"),
        ("bart", dict(model_type="gpt2"), "'gpt2' model"),
        ("bart", dict(model_type="unheard_of"), "unheard_of"),
        ("bart", dict(without=("config.json",)), "holds no config.json"),
        ("bart", dict(without=("model.safetensors",)), "cannot be read"),
        ("bart", dict(without=TOKENIZER_FILES), "tokenizer"),
        ("mbart", dict(without=TOKENIZER_FILES), "tokenizer"),
        ("t5", dict(without=TOKENIZER_FILES), "tokenizer"),
        ("t5", dict(decoder_start_token_id=None), "decoder_start_token_id"),
    ],
)
def test_unsuitable_models_are_refused_in_one_line(copy, capsys, family, changes, message):
    folder = copy(family, **changes)
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.from_pretrained(str(folder))
    message = str(refused.value)
    assert "\n" not in message and str(folder) in message
    captured = capsys.readouterr()
    assert not captured.out and not captured.err  # no report of transformers beside it


def test_special_tokens_that_were_added_behind_the_embeddings_do_not_matter(tiny, tmp_path):
    model = LanguageModel.from_pretrained(str(add_special_tokens(tiny("bart"), tmp_path / "added")))
    tokens, size = model.tokenize(["A <image0> cat.", "Yes."], 20), model.model.config.vocab_size
    assert int(tokens.input_ids.max()) < size <= max(model.tokenizer.get_vocab().values())
    states = model.encode(tokens.input_ids, tokens.attention_mask)
    assert len(model.generate(states, tokens.attention_mask, max_length=8, num_beams=2)) == 2
    plain = add_special_tokens(tiny("bart"), tmp_path / "plain", special=False)
    with pytest.raises(UserError, match="has token ids up to .*: they are not of the same model"):
        LanguageModel.from_pretrained(str(plain))


def test_the_tokenizer_of_another_model_is_refused(copy, tmp_path):
    from latent_models.tokenizers.training import train_tokenizer

    folder = copy()
    train_tokenizer(["a b c d e"], "word", 100, 20).save_pretrained(folder)
    with pytest.raises(UserError, match="has 10 tokens, but the model's vocabulary holds 300"):
        LanguageModel.from_pretrained(str(folder))


def test_damaged_weights_are_refused_in_one_line(copy):
    folder = copy()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        LanguageModel.from_pretrained(str(folder))


def test_weights_are_loaded_in_float32_and_old_files_without_constants_are_complete(copy, language_model):
    """Published checkpoints come in half precision, without the outer prefix and without BART's constant bias."""
    folder = copy(dtype="float16")
    weights = load_file(folder / "model.safetensors")
    old = {key.removeprefix("model."): x.half() for key, x in weights.items() if key != "final_logits_bias"}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    model = LanguageModel.from_pretrained(str(folder))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.model.final_logits_bias.any()
    for a, b in zip(model.parameters(), language_model().parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_an_absent_folder_is_not_taken_for_a_hub_id(name):
    with pytest.raises(UserError, match="no such folder"):
        LanguageModel.from_pretrained(name)


def test_an_unreachable_hub_raises_an_error_at_once():
    began = time.monotonic()
    with pytest.raises(UserError, match="give a local folder") as refused:
        LanguageModel.from_pretrained("facebook/bart-base-of-nobody")
    assert time.monotonic() - began < 2 and "\n" not in str(refused.value)


def test_code_in_a_model_folder_is_not_run(copy):
    folder = copy(auto_map={"AutoConfig": "theirs.Config", "AutoModelForSeq2SeqLM": "theirs.Model"})
    (folder / "theirs.py").write_text("raise SystemExit('their code ran')")
    assert LanguageModel.from_pretrained(str(folder)).dim == 16


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_model_on_the_meta_device_has_shapes_and_no_weights(tiny, language_model, family):
    empty = LanguageModel.from_pretrained(str(tiny(family)), meta=True)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    full = {name: (p.shape, p.dtype, p.requires_grad) for name, p in language_model(family).named_parameters()}
    assert {name: (p.shape, p.dtype, p.requires_grad) for name, p in empty.named_parameters()} == full

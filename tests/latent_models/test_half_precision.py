"""A frozen language model under autocast: its weights are cast once, with equal results."""

from __future__ import annotations

import copy

import pytest
import torch

from latent_models.half_precision import HalfPrecisionCopy, is_linear
from latent_models.text_encoders import TextEncoder
from tests.latent_models.tiny_encoders import FAMILIES as ENCODERS
from tests.latent_models.tiny_encoders import make_encoder


def results(model, texts):
    """States, losses and the gradient of what the decoder attends to, under autocast; and the casts of weights."""
    tokens = model.tokenize(texts, 40)
    ids, mask = tokens.input_ids, tokens.attention_mask.bool()
    memory = torch.randn(len(ids), 7, model.dim, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
        torch.autocast("cpu", torch.bfloat16),
    ):
        states = model.encode(ids, mask)
        losses = model.reconstruction_loss(memory, None, ids, mask)
    losses.sum().backward()
    copies = sum(event.count for event in profiler.key_averages() if event.key == "aten::_to_copy")
    return (states, losses.detach(), memory.grad), copies


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_copy_gives_equal_results_and_casts_no_weights(language_model, texts, monkeypatch, family, capsys):
    model = language_model(family)
    results(model, texts)
    notes = [line for line in capsys.readouterr().err.splitlines() if "also held in bfloat16" in line]
    assert len(notes) == 1 and " MB" in notes[0]
    fast, few = results(model, texts)
    assert "held in" not in capsys.readouterr().err
    monkeypatch.setattr(HalfPrecisionCopy, "of", lambda self, model, dtype: model)
    plain, many = results(model, texts)
    for one, other in zip(fast, plain, strict=True):
        assert torch.equal(one, other)
    layers = sum(isinstance(part, torch.nn.Linear) for part in model.model.modules())
    assert many - few >= layers - 1  # the output layer is cast in both where it is tied


def test_the_copy_follows_the_weights_and_is_in_no_checkpoint(language_model, texts):
    model = language_model("bart")
    before, _ = results(model, texts)
    assert not any("half" in name for name in model.state_dict())
    half = model._half.of(model.model, torch.bfloat16)
    assert model._half.of(model.model, torch.bfloat16) is half
    assert half.get_input_embeddings().weight is model.model.get_input_embeddings().weight
    with torch.no_grad():
        for p in model.model.parameters():
            p.mul_(1.5)
    after, _ = results(model, texts)
    assert not torch.equal(before[0], after[0]) and model._half.of(model.model, torch.bfloat16) is not half
    assert copy.deepcopy(model)._half._made is None


def test_a_model_that_trains_and_float32_need_no_copy(language_model, texts):
    frozen, trained = language_model("bart"), language_model("bart", frozen=False)
    tokens = frozen.tokenize(texts, 40)
    frozen.encode(tokens.input_ids, tokens.attention_mask.bool())
    with torch.autocast("cpu", torch.bfloat16):
        trained.encode(tokens.input_ids, tokens.attention_mask.bool())
    assert frozen._half._made is None and trained._half._made is None


def casts(run):
    """What a function returns under autocast, and the number of conversions."""
    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler,
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = run()
    return out, sum(event.count for event in profiler.key_averages() if event.key == "aten::_to_copy")


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_frozen_encoder_has_a_copy_although_the_decoder_trains(language_model, texts, monkeypatch, family):
    model = language_model(family, frozen=False).eval()
    model.encoder.requires_grad_(False)
    tokens = model.tokenize(texts, 40)
    ids, mask = tokens.input_ids, tokens.attention_mask.bool()
    casts(lambda: model.encode(ids, mask))
    fast, few = casts(lambda: model.encode(ids, mask))
    assert model._half._made is not None and not fast.requires_grad
    monkeypatch.setattr(HalfPrecisionCopy, "of", lambda self, model, dtype: model)
    plain, many = casts(lambda: model.encode(ids, mask))
    layers = sum(isinstance(part, torch.nn.Linear) for part in model.encoder.modules())
    assert torch.equal(fast, plain) and many - few >= layers
    monkeypatch.undo()
    model._half = HalfPrecisionCopy()
    model.encoder.requires_grad_(True)  # it trains again, so no copy is made
    trained, _ = casts(lambda: model.encode(ids, mask))
    assert model._half._made is None and trained.requires_grad


def test_logits_of_a_frozen_model_use_the_copy(language_model, texts, monkeypatch):
    model = language_model("bart")
    model.model.lm_head.weight = torch.nn.Parameter(model.model.lm_head.weight.detach().clone(), False)  # untied
    hidden = torch.randn(2, 3, model.dim, generator=torch.Generator().manual_seed(1))
    casts(lambda: model.logits_of_states(hidden))
    fast, few = casts(lambda: model.logits_of_states(hidden))
    monkeypatch.setattr(HalfPrecisionCopy, "of", lambda self, model, dtype: model)
    plain, many = casts(lambda: model.logits_of_states(hidden))
    assert torch.equal(fast, plain) and few < many


@pytest.mark.parametrize("family", ENCODERS)
def test_a_text_encoder_has_a_copy(family, texts, tmp_path, monkeypatch, capsys):
    encoder = TextEncoder.from_pretrained(str(make_encoder(family, tmp_path, texts)))
    batch = encoder.tokenizer(texts, max_length=40, truncation=True, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    casts(lambda: encoder.encode(ids, mask))
    assert capsys.readouterr().err.count("the frozen text encoder is also held in bfloat16") == 1
    fast, few = casts(lambda: encoder.encode(ids, mask))
    monkeypatch.setattr(HalfPrecisionCopy, "of", lambda self, model, dtype: model)
    plain, many = casts(lambda: encoder.encode(ids, mask))
    layers = sum(is_linear(part) for part in encoder.encoder.modules())
    assert torch.equal(fast, plain) and many - few >= layers > 0
    assert not any("half" in name for name in encoder.state_dict())


def test_a_copy_that_was_made_in_inference_mode_serves_training(language_model, texts):
    model = language_model("bart")
    tokens = model.tokenize(texts, 40)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model.encode(tokens.input_ids, tokens.attention_mask.bool())
    made = model._half._made[1]
    results(model, texts)
    assert model._half._made[1] is made

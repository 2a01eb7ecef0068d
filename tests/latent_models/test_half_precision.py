"""A frozen language model under autocast: its weights are cast once, with equal results."""

from __future__ import annotations

import copy

import pytest
import torch

from latent_models.half_precision import HalfPrecisionCopy


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

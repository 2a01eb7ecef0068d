"""The draft model: shapes, memory, its loss, and training on greedy decoding of a language model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latent_models.generation.decoding import DECODING
from latent_models.generation.generator import TokenGenerator
from latent_models.speculative import draft_model
from latent_models.speculative.draft_model import DraftModel, default_dim, draft_loss
from latent_models.speculative.options import DraftModelOptions
from latent_models.speculative.verification import SpeculativeLoop
from utils.errors import UserError

LENGTH = 14


@pytest.fixture
def draft_model_of():
    def make(model, **options):
        torch.manual_seed(0)
        return DraftModel(model.dim, LENGTH, DraftModelOptions(**options))

    return make


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_trained_draft_model_predicts_greedy_decoding(ragged, draft_model_of, family):
    model, states, _ = ragged(family)
    model.token_generator = TokenGenerator()
    plain = model.generate_ids(states, None, LENGTH, **DECODING["greedy"])
    rows = [F.pad(ids[1:], (0, LENGTH + 1 - len(ids)), value=model.pad_id) for ids in plain]
    labels = torch.stack(rows)
    real = labels != model.pad_id
    network = draft_model_of(model, draft_model_dim=64)
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for _ in range(150):
        nll = draft_loss(model.model, network(states), labels)
        optimizer.zero_grad()
        (nll * real).sum().div(real.sum()).backward()
        optimizer.step()
    guessed = network.draft_ids(model.model, states)
    assert (guessed == labels)[real].float().mean() > 0.95
    loop = SpeculativeLoop(network)
    found = model.generate_ids(states, None, LENGTH, greedy_loop=loop, **DECODING["greedy"])
    assert all(torch.equal(a[a != model.pad_id], b[b != model.pad_id]) for a, b in zip(found, plain, strict=True))
    assert loop.stats.texts == len(states) and loop.stats.per_text() < 2


def test_draft_loss_is_cross_entropy_with_the_output_layer_of_the_language_model(ragged, draft_model_of):
    model, states, _ = ragged("bart")
    network = draft_model_of(model, draft_model_depth=1)
    model.model.final_logits_bias.normal_()
    labels = torch.randint(3, 200, (len(states), 9))
    logits = network(states)[:, :9] @ model.model.get_output_embeddings().weight.t() + model.model.final_logits_bias
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    assert torch.allclose(draft_loss(model.model, network(states), labels), expected, atol=1e-5)
    assert torch.equal(network.draft_ids(model.model, states)[:, :9], logits.argmax(-1))


def test_logits_are_computed_in_chunks(ragged, draft_model_of, monkeypatch):
    model, states, _ = ragged("t5")
    network = draft_model_of(model)
    whole = network.draft_ids(model.model, states)
    seen = []
    network.register_forward_hook(lambda *call: seen.append(len(call[-1])))
    monkeypatch.setattr(draft_model, "MAX_LOGITS", 5 * LENGTH * model.model.config.vocab_size)
    assert torch.equal(network.draft_ids(model.model, states), whole) and seen == [5, 5, 5, 5, 4]


def test_default_widths_and_shapes():
    assert [default_dim(dim) for dim in (16, 64, 128, 768, 1024)] == [32, 32, 64, 384, 512]
    network = DraftModel(48, 7, DraftModelOptions(draft_model_depth=3))
    assert network(torch.randn(2, 5, 48)).shape == (2, 7, 48) and network.max_seq_len == 7
    with pytest.raises(
        UserError, match="--draft_model_dim is 48, which is not a multiple of the attention head size 32"
    ):
        DraftModel(48, 7, DraftModelOptions(draft_model_dim=48))

"""A decoding step of our own computes what the decoder of transformers does, and is the one that generation uses."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from latent_models.generation.cache import make_cache
from latent_models.generation.decoder_steps import STEPS, has_step, stepwise
from latent_models.generation.decoding import DECODING
from latent_models.key_value_cache import CACHE

TEXTS, BEAMS, TOKENS = 5, 3, 12


def scramble(model) -> None:
    """Norms and biases that change something, and a bias of the logits."""
    generator = torch.Generator().manual_seed(1)
    biases = [p for p in model.parameters() if p.ndim == 1]
    biases += [model.final_logits_bias] if hasattr(model, "final_logits_bias") else []
    for p in biases:
        p.data += 0.3 * torch.randn(p.shape, generator=generator)


@torch.no_grad()
def by_transformers(model, ids, states, mask):
    """Logits (B * K, T, V) of all positions in one call, without a cache."""
    return model(decoder_input_ids=ids, encoder_outputs=BaseModelOutput(states), attention_mask=mask).logits


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beams", [1, BEAMS])
@pytest.mark.parametrize("family", sorted(STEPS))
def test_a_step_gives_the_logits_of_transformers(ragged, family, beams, masked):
    """With beams that are reordered at every token, and keys that outgrow their buffer."""
    language_model, states, mask = ragged(family)
    model = language_model.model
    scramble(model)
    assert has_step(model)
    generator = torch.Generator().manual_seed(0)
    states, mask = (x[:TEXTS].repeat_interleave(beams, 0) for x in (states, mask))
    mask = mask.long() if masked else torch.ones_like(mask).long()
    ids = torch.randint(5, len(language_model.tokenizer), (TEXTS * beams, TOKENS), generator=generator)
    cache, step = make_cache(model, beams), STEPS[family](model)
    with torch.no_grad():
        first = dict(decoder_input_ids=ids[:, :1], encoder_outputs=BaseModelOutput(states), attention_mask=mask)
        model(**first, **{CACHE: cache})
        for length in range(2, TOKENS + 1):
            within = torch.randint(0, beams, (TEXTS, beams), generator=generator)
            order = (torch.arange(TEXTS)[:, None] * beams + within).flatten()
            ids = torch.cat([ids[order, : length - 1], ids[:, length - 1 :]], 1)
            cache.reorder_cache(order)
            shared = beams if family in ("bart", "mbart") else 1  # beams whose encoder states the cache holds once
            hidden = mask[::shared, None, None, :].bool() if masked else None
            found = step(ids[:, length - 1 : length], cache, hidden)
            expected = by_transformers(model, ids[:, :length], states, mask)[:, -1:]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
            assert cache.get_seq_length() == length


def test_generation_calls_the_decoder_of_transformers_once(ragged):
    """For the first token, which fills the cache of the encoder's states."""
    model, states, _ = ragged("bart")
    calls = []
    model.model.get_decoder().register_forward_hook(lambda *call: calls.append(1))
    for strategy in ("greedy", "beam", "nucleus"):
        texts = model.generate(states, None, max_length=10, **DECODING[strategy])
        assert len(calls) == 1 and max(map(len, texts)) > 1
        calls.clear()
    assert "forward" not in vars(model.model), "the model is as it was"


def test_the_model_is_as_it_was_after_an_error(language_model):
    model = language_model("bart").model
    with pytest.raises(KeyboardInterrupt), stepwise(model, False):
        assert "forward" in vars(model)
        raise KeyboardInterrupt
    assert "forward" not in vars(model)


def test_other_decoders_are_those_of_transformers(language_model):
    """Of another family, in training, in float16, or with adapters."""
    model = language_model("bart").model
    assert not has_step(language_model("t5").model.half())
    assert has_step(model)
    model.config.model_type = "pegasus"
    assert not has_step(model)
    model.config.model_type = "bart"
    model.train()
    assert not has_step(model)
    model.eval()

    class Adapted(torch.nn.Linear):
        pass

    layer = model.get_decoder().layers[0].self_attn
    layer.q_proj = Adapted(layer.q_proj.in_features, layer.q_proj.out_features)
    assert not has_step(model)

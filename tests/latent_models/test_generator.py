"""Fast generation changes no text: finished rows leave the batch, buckets by length, static caches, bfloat16."""

from __future__ import annotations

import itertools

import pytest
import torch

from latent_models.families import FAMILIES
from latent_models.generation.buckets import buckets
from latent_models.generation.decoding import DECODING
from latent_models.generation.generator import TokenGenerator, make_token_generator
from latent_models.generation.options import GenerationOptions
from utils.errors import UserError

N, LENGTH = 24, 14
WHOLE = GenerationOptions(whole_batches=True)


def generate(model, options, strategy, states, mask):
    model.token_generator = TokenGenerator(options)
    torch.manual_seed(0)
    return model.generate(states, mask, max_length=LENGTH, **DECODING[strategy])


@pytest.mark.parametrize(
    ("family", "strategy"),
    [
        *((family, strategy) for family in sorted(FAMILIES) for strategy in ("greedy", "beam")),
        ("bart", "nucleus"),
        ("t5", "nucleus"),
    ],
)
def test_every_generation_option_gives_the_same_texts(ragged, family, strategy):
    model, states, mask = ragged(family)
    computed = []  # rows of each call
    model.model.register_forward_hook(lambda *call: computed.append(len(call[-1].logits)))
    for seen in (None, mask):
        plain = generate(model, WHOLE, strategy, states, seen)
        whole = sum(computed)
        assert len(set(plain)) > N / 3 and len({len(text) for text in plain}) > 4, plain
        computed.clear()
        assert generate(model, GenerationOptions(), strategy, states, seen) == plain
        if strategy == "beam":  # with random weights the length of a text does not depend on that of its states
            assert (max(computed) < 4 * N) == (seen is not None), "in buckets where lengths are known"
        elif seen is None:
            assert sum(computed) < whole
        assert generate(model, GenerationOptions(kv_cache="static"), strategy, states, seen) == plain
        computed.clear()


def test_bfloat16_is_a_copy_that_follows_the_weights(ragged):
    model, states, _ = ragged("bart")
    exact = generate(model, WHOLE, "greedy", states, None)
    half = generate(model, GenerationOptions(generation_dtype="bf16"), "greedy", states, None)
    assert sum(a == b for a, b in zip(half, exact, strict=True)) > N / 2, "8 bits decide few arg-max"
    token_generator = model.token_generator
    (_, copy) = token_generator._copy
    model.generate(states, None, max_length=4, **DECODING["greedy"])
    assert token_generator._copy[1] is copy and {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    with torch.no_grad():
        model.model.get_output_embeddings().weight.neg_()
    other = model.generate(states, None, max_length=LENGTH, **DECODING["greedy"])
    exact = generate(model, WHOLE, "greedy", states, None)
    assert token_generator._copy[1] is not copy and other != half
    key = token_generator._copy[0]
    assert {place[2].type for place in key[1]} == {"cpu"}, "a model that moves to another device gets another copy"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for precision, same in (("run", other), ("fp32", exact)):
            assert generate(model, GenerationOptions(generation_dtype=precision), "greedy", states, None) == same


@pytest.mark.parametrize("fused", [True, False])
def test_the_bfloat16_copy_follows_weights_in_training(ragged, fused):
    """The copy must follow every optimizer step: a fused step does not change the version counter of a parameter, and
    validation once decoded with the weights of the first copy."""
    model, states, _ = ragged("bart")
    model.model.requires_grad_(True)
    half = GenerationOptions(generation_dtype="bf16")
    before = generate(model, half, "greedy", states, None)
    token_generator = model.token_generator
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=0.3, fused=fused)
    for p in model.model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.manual_seed(0)
    after = model.generate(states, None, max_length=LENGTH, **DECODING["greedy"])
    assert model.token_generator is token_generator and after == generate(model, half, "greedy", states, None) != before


@pytest.mark.parametrize("step_rows", [0.5, 3.0, 100.0])
def test_buckets_are_the_cheapest_of_all_cuts(step_rows):
    lengths = torch.tensor([5, 1, 9, 9, 2, 30, 7])
    parts = buckets(lengths, step_rows)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    found = sum(int(lengths[part].max()) * (len(part) + step_rows) for part in parts)
    order, n = lengths.sort().values, len(lengths)

    def cost(cuts):
        bounds = [0, *cuts, n]
        return sum(int(order[b - 1]) * (b - a + step_rows) for a, b in itertools.pairwise(bounds))

    every = (cuts for k in range(n) for cuts in itertools.combinations(range(1, n), k))
    assert found == min(cost(cuts) for cuts in every)
    assert (len(parts) == 1) == (step_rows == 100.0)


def test_a_static_cache_is_refused_where_there_is_none(language_model):
    model = language_model("bart").model
    assert make_token_generator(GenerationOptions(kv_cache="static"), model, "a model").options.kv_cache == "static"
    model._can_compile_fullgraph = False
    with pytest.raises(UserError, match="no static cache for a model"):
        make_token_generator(GenerationOptions(kv_cache="static"), model, "a model")
    make_token_generator(GenerationOptions(), model, "a model")

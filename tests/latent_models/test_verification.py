"""Drafts change no text: greedy decoding gives the same tokens with good, bad and adversarial drafts as without."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from latent_models.families import FAMILIES
from latent_models.generation.decoding import DECODING
from latent_models.generation.generator import TokenGenerator
from latent_models.generation.options import GenerationOptions
from latent_models.speculative import verification
from latent_models.speculative.verification import (
    DraftStats,
    SpeculativeLoop,
    end_of,
    init_draft,
    next_draft,
    pop_draft_stats,
)

LENGTH = 14


def speculative(draft):
    """A loop that verifies fixed drafts, ids (B, n)."""
    return SpeculativeLoop(SimpleNamespace(draft_ids=lambda model, states: draft))


def write(model, states, draft=None, options=None, length=LENGTH, **decoding):
    """(ids (B, length), DraftStats) of greedy decoding with drafts (B, n); without drafts, token by token."""
    model.token_generator = TokenGenerator(options)
    loop = None if draft is None else speculative(draft)
    ids = model.generate_ids(states, None, length, greedy_loop=loop, **{**DECODING["greedy"], **decoding})
    rows = [torch.nn.functional.pad(row[1:], (0, length + 1 - len(row)), value=model.pad_id) for row in ids]
    return torch.stack(rows), DraftStats() if loop is None else loop.stats


def corrupted_drafts(greedy, vocabulary, end):
    """Drafts by name, made from the ids of greedy decoding (B, n)."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(3, vocabulary, greedy.shape, generator=generator)
    some = torch.rand(greedy.shape, generator=generator)
    return {
        "random": noise,
        "half": torch.where(some < 0.5, noise, greedy),
        "one wrong": torch.where(torch.arange(greedy.shape[1]) == 4, noise, greedy),
        "one missing": torch.cat([greedy[:, :5], greedy[:, 6:]], 1),
        "one too many": torch.cat([greedy[:, :5], noise[:, :1], greedy[:, 5:]], 1),
        "empty": torch.full_like(greedy, end),
        "endless": torch.where(greedy <= 2, noise, greedy),
        "cut off": greedy[:, :3],
        "of another text": greedy.roll(1, 0),
        "always one off": (greedy + 1) % vocabulary,
        "no tokens": greedy[:, :0],
    }


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_draft_gives_the_texts_of_greedy_decoding(ragged, family):
    model, states, _ = ragged(family)
    plain, _ = write(model, states)
    tokens = int((plain != model.pad_id).sum())
    found, passes = write(model, states, plain)
    assert torch.equal(found, plain) and passes.passes == passes.texts == len(states), "one pass for a perfect draft"
    for name, draft in corrupted_drafts(plain, len(model.tokenizer), model.tokenizer.eos_token_id).items():
        found, passes = write(model, states, draft)
        assert torch.equal(found, plain), name
        assert passes.texts == len(states) <= passes.passes <= len(states) + tokens, (name, passes)
        assert torch.equal(write(model, states[3:4], draft[3:4])[0], plain[3:4]), name


def test_an_inserted_or_missing_token_costs_few_passes(ragged):
    model, states, _ = ragged("bart")
    plain, _ = write(model, states)
    long = (plain != model.pad_id).sum(1) > 9
    drafts = corrupted_drafts(plain, len(model.tokenizer), model.tokenizer.eos_token_id)
    for name in ("one wrong", "one missing", "one too many"):
        found, passes = write(model, states[long], drafts[name][long])
        assert torch.equal(found, plain[long]) and passes.per_text() <= 4, (name, passes)


@pytest.mark.parametrize(
    "decoding",
    [
        dict(min_length=6),
        dict(forced_bos_token_id=7),
        dict(forced_eos_token_id=2),
        dict(suppress_tokens=[5, 9, 40]),
        dict(begin_suppress_tokens=[5, 9, 40], forced_bos_token_id=11),
        dict(min_new_tokens=4),
        dict(remove_invalid_values=True),
        dict(eos_token_id=[2, 50, 60]),
        dict(repetition_penalty=1.3),  # depends on earlier tokens: token by token
        dict(no_repeat_ngram_size=2),
    ],
    ids=lambda decoding: next(iter(decoding)),
)
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_logits_processors_apply_to_drafts(ragged, family, decoding):
    model, states, _ = ragged(family)
    bare, _ = write(model, states)
    plain, _ = write(model, states, **decoding)
    drafts = {"own": plain, **corrupted_drafts(bare, len(model.tokenizer), 2)}
    for name in ("own", "half", "one missing", "empty"):
        draft = drafts[name]
        found, passes = write(model, states, draft, **decoding)
        assert torch.equal(found, plain), name
        alone = "repetition_penalty" in decoding or "no_repeat_ngram_size" in decoding
        assert (passes.num_fallbacks == len(states)) if alone else name != "own" or passes.per_text() == 1


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_texts_end_at_max_length(ragged, length):
    model, states, _ = ragged("bart")
    plain, _ = write(model, states, length=length)
    for name, draft in corrupted_drafts(write(model, states)[0], len(model.tokenizer), 2).items():
        assert torch.equal(write(model, states, draft, length=length)[0], plain), name


def test_finished_rows_leave_the_batch_and_verified_prefixes_come_from_the_cache(ragged, rows_computed):
    model, states, _ = ragged("bart")
    plain, _ = write(model, states)
    drafts = corrupted_drafts(plain, len(model.tokenizer), 2)
    draft = plain.clone()
    draft[::4] = drafts["one wrong"][::4]
    computed, places = rows_computed(model), []
    model.model.get_decoder().register_forward_hook(lambda *call: places.append(call[-1].last_hidden_state.shape[1]))
    found, passes = write(model, states, draft)
    assert torch.equal(found, plain) and sum(computed) == passes.passes
    assert computed[0] == len(states) and computed[1] <= len(states) / 4
    assert places[1] <= places[0] - 4, "the verified prefix is in the cache"


def test_after_rejected_drafts_decoding_continues_token_by_token(ragged):
    model, states, _ = ragged("bart")
    plain, _ = write(model, states)
    lengths = []
    model.model.get_decoder().register_forward_hook(lambda *call: lengths.append(call[-1].last_hidden_state.shape[1]))
    found, passes = write(model, states, corrupted_drafts(plain, len(model.tokenizer), 2)["random"])
    assert torch.equal(found, plain) and passes.num_fallbacks == len(states)
    assert lengths[0] > 8 and max(lengths[1:]) <= 4 and set(lengths[3:]) == {1} and len(lengths) <= LENGTH + 1


def test_logits_are_computed_in_chunks(ragged, monkeypatch):
    model, states, _ = ragged("t5")
    plain, _ = write(model, states)
    drafts = corrupted_drafts(plain, len(model.tokenizer), 2)
    sizes = []
    model.model.get_output_embeddings().register_forward_hook(lambda *call: sizes.append(call[-1].numel()))
    at_once = 3 * LENGTH * model.model.config.vocab_size
    monkeypatch.setattr(verification, "MAX_LOGITS", at_once)
    found, _ = write(model, states, drafts["half"])
    assert torch.equal(found, plain) and max(sizes) <= at_once < plain.numel() * model.model.config.vocab_size / 2


def test_only_greedy_decoding_of_unpadded_states_uses_drafts(ragged):
    model, states, mask = ragged("bart")

    def refuse(model, states):
        raise AssertionError("asked")

    for options, strategy, seen in (
        (GenerationOptions(), "beam", None),
        (GenerationOptions(), "nucleus", None),
        (GenerationOptions(), "greedy", mask),
        (GenerationOptions(whole_batches=True), "greedy", None),
        (GenerationOptions(kv_cache="static"), "greedy", None),
    ):
        model.token_generator = TokenGenerator(options)
        model.generate(states[:4], None if seen is None else seen[:4], 4, greedy_loop=refuse, **DECODING[strategy])
    model.token_generator = TokenGenerator()
    with pytest.raises(AssertionError, match="asked"):
        model.generate(states[:4], None, 4, greedy_loop=refuse, **DECODING["greedy"])


def test_bfloat16_generation_verifies_with_the_bfloat16_copy(ragged):
    model, states, _ = ragged("bart")
    half = GenerationOptions(generation_dtype="bf16")
    plain, _ = write(model, states, options=half)
    found, passes = write(model, states, plain, options=half)
    same = (found == plain).all(1).float().mean()
    assert same > 0.8 and passes.per_text() < 2, "8 bits break many ties, and kernels break them differently"


def test_pop_draft_stats_resets_the_counts(ragged):
    model, states, _ = ragged("bart")
    plain, _ = write(model, states)
    space = torch.nn.Module()
    assert pop_draft_stats(space) == (0, 0), "no draft model is attached"
    space.greedy_loop = speculative(plain)
    model.generate(states, None, LENGTH, greedy_loop=space.greedy_loop, **DECODING["greedy"])
    assert pop_draft_stats(space) == (len(states), len(states)) and pop_draft_stats(space) == (0, 0)
    assert DraftStats().per_text() == 0


# ------------------------------------------------------------------------------------------------ parts


def test_drafts_are_truncated_and_padded():
    start, ends = torch.tensor([[9], [9]]), torch.tensor([2])
    draft = torch.tensor([[5, 2, 6], [5, 6, 7]])
    assert init_draft(start, draft, ends, 6).tolist() == [[9, 5, 2, 2, 2, 2], [9, 5, 6, 7, 2, 2]]
    assert init_draft(start, draft, ends, 3).tolist() == [[9, 5, 2], [9, 5, 6]]
    assert end_of(init_draft(start, draft, ends, 6), ends, torch.tensor([1, 1])).tolist() == [2, 4]
    none = ends[:0]
    assert end_of(init_draft(start, draft, none, 6), none, torch.tensor([1, 1])).tolist() == [6, 6]


def test_the_next_draft_continues_after_the_same_token_or_with_the_predictions_of_the_model():
    first = torch.tensor([[9, 1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 5, 6], [9, 1, 2, 3, 4, 5, 6]])
    predicted = torch.tensor([[1, 2, 4, 7], [1, 2, 8, 7], [1, 2, 3, 4]])  # for positions 1 to 4
    at, disagrees = torch.tensor([3, 3, 4]), torch.tensor([True, True, False])
    ids, shift = next_draft(first, first, predicted, 1, at, torch.zeros(3, dtype=torch.long), disagrees)
    assert ids.tolist() == [[9, 1, 2, 4, 5, 6, 6], [9, 1, 2, 8, 7, 5, 6], [9, 1, 2, 3, 4, 5, 6]]
    assert shift.tolist() == [1, 0, 0]
    # the token before the last was missing: the one after it is found one position earlier
    ids, shift = next_draft(
        ids[1:2], first[1:2], torch.tensor([[3, 9, 9]]), 4, torch.tensor([4]), shift[1:2], at[:1] > 0
    )
    assert ids.tolist() == [[9, 1, 2, 8, 3, 4, 5]] and shift.tolist() == [-1]

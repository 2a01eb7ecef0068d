"""Filling blanks by a language model: given tokens are forced, and the best whole text is found."""

from __future__ import annotations

import pytest
import torch

from latent_models.generation.infilling import fill_tokens, visible_tokens


@pytest.fixture
def given(ragged):
    """family -> model, states (3, S, d_lm), mask, ids (3, 7) of texts, known (3, 7) without some blanks, lengths."""

    def of(family):
        model, states, mask = ragged(family)
        ids = torch.randint(5, 200, (3, 7), generator=torch.Generator().manual_seed(1))
        known = torch.ones(3, 7, dtype=torch.bool)
        known[0, 3] = known[1, 0] = known[1, 5] = known[1, 4] = False  # none in the last row
        return model, states[:3], mask[:3], ids, known, torch.tensor([7, 6, 5])

    return of


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_given_tokens_stay_and_blanks_are_visible(given, family):
    model, states, mask, ids, known, lengths = given(family)
    filled = fill_tokens(model, states, mask, ids, known, lengths)
    assert torch.equal(filled[known], ids[known])
    visible = visible_tokens(model.tokenizer, model.model.config.vocab_size)
    assert bool(visible[filled[~known]].all())
    assert not visible[model.tokenizer.all_special_ids].any()
    # what stands at the blanks before, and behind the end of a text, changes nothing
    noise = torch.where(known & (torch.arange(7) < lengths[:, None]), ids, 7)
    again = fill_tokens(model, states, mask, noise, known, lengths)
    assert torch.equal(again[~known], filled[~known])
    alone = fill_tokens(model, states[1:2], mask[1:2], ids[1:2], known[1:2], lengths[1:2])
    assert torch.equal(alone[0, :6], filled[1, :6])


@pytest.mark.parametrize("family", ["bart", "mt5"])
def test_one_blank_gets_the_token_that_makes_the_whole_text_likeliest(given, family):
    """Also by what stands behind it, which a greedy decoder has not read."""
    model, states, mask, ids, known, lengths = given(family)
    ids, known, lengths = ids[:1], known[:1], lengths[:1]
    visible = visible_tokens(model.tokenizer, model.model.config.vocab_size).nonzero()[:, 0]
    candidates = ids.repeat(len(visible), 1)
    candidates[:, 3] = visible
    expand = len(visible)
    losses = model.reconstruction_loss(
        states[:1].repeat(expand, 1, 1), mask[:1].repeat(expand, 1), candidates, torch.ones_like(candidates)
    )
    best = fill_tokens(model, states[:1], mask[:1], ids, known, lengths, beams=expand)
    assert best[0, 3] == candidates[losses.argmin(), 3]
    greedy = fill_tokens(model, states[:1], mask[:1], ids, known, lengths, beams=1)
    nll = dict(zip(visible.tolist(), losses.tolist(), strict=True))
    assert nll[int(best[0, 3])] <= nll[int(greedy[0, 3])]

"""Greedy decoding from a draft: the model looks at all tokens of a draft at once, and only what it agrees with stays.

A pass over the draft tells what the model would write after each of its prefixes. Up to the first token that differs,
this is what greedy decoding writes, and so is the model's own token there; what follows is drafted anew. Each pass
makes at least one token final, a good draft all of them, and the text is that of greedy decoding whatever the draft.
Stern et al. 2018, arXiv:1811.03115 (verify in parallel); Santilli et al. 2023, arXiv:2305.10427 (what the model said
after a wrong prefix is the next draft). After a word too many or too few, what follows the same token in the first
draft is a better one, so it is looked for first.
Shapes: B texts, T tokens with the one that decoding starts from, W of them looked at in a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from latent_models.cross_entropy import LOGITS_AT_ONCE
from latent_models.output_layer import logits_of
from latent_models.writing.leaving import rows_that_leave
from latent_models.writing.processors import acting, by_place, end_tokens

NEARBY = (0, 1, -1, 2, -2, 3, -3, 4, -4)  # places of the first draft where it may go on, the likeliest first
WIDER, LEAST = 4, 4  # a pass looks at so many times the tokens that the one before it gained, and at no fewer
WORTH = 3  # tokens that passes have to gain on average; below, drafts are given up: one at a time is cheaper


@dataclass
class Passes:
    """How often the model looked at how many texts."""

    texts: int = 0
    passes: int = 0  # summed over texts
    given_up: int = 0  # texts whose drafts were worth nothing, which were written token by token

    def per_text(self) -> float:
        return self.passes / max(1, self.texts)


class Verified:
    """A decoding loop for `generate(custom_generate=...)`: greedy ids (B, T), within rounding, from drafts."""

    def __init__(self, draft: Tensor, passes: Passes) -> None:
        """draft: (B, n) ids, what follows an end being ignored. passes: are counted there."""
        self.draft, self.passes = draft, passes

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs: Any,
    ) -> Tensor:
        how: dict[str, Any] = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "generation_config": generation_config,
        }
        passes, count, device = self.passes, len(input_ids), input_ids.device
        passes.texts += count
        if not by_place(logits_processor, stopping_criteria):
            return self._plainly(model, input_ids, how, kwargs)
        limit, begin = stopping_criteria.max_length, input_ids.shape[1]
        ends = torch.cat([input_ids.new_empty(0), *(e.to(device) for e in end_tokens(stopping_criteria))])
        states, cache = kwargs["encoder_outputs"].last_hidden_state, kwargs["past_key_values"]
        first = ids = drafted(input_ids, self.draft, ends, limit)
        pad = generation_config.pad_token_id
        written = torch.full_like(ids, pad)
        place = torch.arange(limit, device=device)
        rows = torch.arange(count, device=device)  # of `written` that are still open
        known = torch.full_like(rows, begin)  # tokens of each row that are final
        shift = torch.zeros_like(rows)  # a row's place p is place p + shift of its first draft
        cached, last, looked, worth = 0, min(limit - 1, int(end_of(ids, ends, known).max())), 0, True
        while True:
            hidden = model.get_decoder()(
                input_ids=ids[:, cached:last],
                encoder_hidden_states=states,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state  # (b, W, d_lm)
            passes.passes, looked = passes.passes + len(rows), looked + len(rows)
            said = choices(model, hidden, ids, cached, logits_processor)  # (b, W), of places cached + 1 to last
            there = place[cached + 1 : last + 1]
            # what is final stays, though another kernel may break a tie another way
            wrong = (said != ids[:, cached + 1 : last + 1]) & (there >= known[:, None])
            disagrees = wrong.any(1)
            at = torch.where(disagrees, wrong.int().argmax(1) + cached + 1, last)
            at = torch.maximum(at, known - 1)  # the last place that is final now; some rows wait for others
            gained, known = at + 1 - known, at + 1
            if worth:
                ids, shift = redrafted(ids, first, said, cached + 1, at, shift, disagrees)
            else:
                ids = corrected(ids, said, cached + 1, at, disagrees)
            end = end_of(ids, ends, torch.full_like(known, begin))
            final = place <= torch.minimum(end, at)[:, None]
            written[rows] = torch.where(final, ids, written[rows])
            staying = ((end > at) & (known < limit)).nonzero()[:, 0]
            if not len(staying):
                return written
            if len(staying) < len(rows):
                rows, ids, first, states = rows[staying], ids[staying], first[staying], states[staying]
                known, shift, gained = known[staying], shift[staying], gained[staying]
                cache.batch_select_indices(staying)
            mean = gained.sum() / (gained > 0).sum().clamp(min=1)  # of those that did not wait
            slowest, reach, mean, final = torch.stack(
                [known.min(), end_of(ids, ends, known).max(), mean.ceil().long(), (written[:, begin:] != pad).sum()]
            ).tolist()
            if worth and final < WORTH * looked:
                worth, passes.given_up = False, passes.given_up + len(rows)
            cache.crop(slowest - 1 - last)  # so many tokens less
            cached, last = slowest - 1, min(limit - 1, reach, slowest - 1 + (max(LEAST, WIDER * mean) if worth else 1))

    def _plainly(self, model: Any, input_ids: Tensor, how: dict[str, Any], kwargs: dict[str, Any]) -> Tensor:
        """Token by token."""
        written = rows_that_leave(model, input_ids, **how, **kwargs)
        self.passes.given_up += len(written)
        pad = how["generation_config"].pad_token_id
        self.passes.passes += int((written[:, input_ids.shape[1] :] != pad).sum())
        return written


def drafted(input_ids: Tensor, draft: Tensor, ends: Tensor, limit: int) -> Tensor:
    """Ids (B, limit): what decoding starts from, then the draft; after its end, and where it is too short, ends."""
    begin = input_ids.shape[1]
    draft = draft[:, : limit - begin]
    if len(ends):
        ended = torch.isin(draft, ends).int().cumsum(1) > 0
        draft = torch.where(ended, ends[0], draft)
    rest = limit - begin - draft.shape[1]
    filler = draft.new_full((len(draft), rest), int(ends[0]) if len(ends) else 0)
    return torch.cat([input_ids, draft, filler], 1)


def end_of(ids: Tensor, ends: Tensor, start: Tensor) -> Tensor:
    """Place (B,) of the first end in ids (B, T) at `start` (B,) or later; T where there is none."""
    place = torch.arange(ids.shape[1], device=ids.device)
    found = torch.isin(ids, ends) & (place >= start[:, None])
    return torch.where(found.any(1), found.int().argmax(1), ids.shape[1])


def choices(model: Any, hidden: Tensor, ids: Tensor, cached: int, processors: LogitsProcessorList) -> Tensor:
    """The token (B, W) that greedy decoding takes after each of the prefixes ids[:, : cached + 1], + 2, ...

    hidden: (B, W, d_lm). Logits (B, W, V) are made for some rows at a time.
    """
    acts = [acting(processors, cached + 1 + j) for j in range(hidden.shape[1])]
    size = max(1, LOGITS_AT_ONCE // (hidden.shape[1] * model.get_output_embeddings().weight.shape[0]))
    found = []
    for at in range(0, len(hidden), size):
        part = slice(at, at + size)
        logits = logits_of(model, hidden[part])
        for j, those in enumerate(acts):
            scores = logits[:, j].to(torch.float32, copy=True) if those else None
            for processor in those:
                scores = processor(ids[part, : cached + 1 + j], scores)
            if scores is not None:
                logits[:, j] = scores
        found.append(logits.argmax(-1))
    return torch.cat(found)


def corrected(ids: Tensor, said: Tensor, begin: int, at: Tensor, disagrees: Tensor) -> Tensor:
    """Ids (B, T) with what the model said (B, W), of places begin and on, at the place `at` (B,) where it disagrees."""
    token = said.gather(1, (at - begin).clamp(max=said.shape[1] - 1)[:, None])
    return torch.where(disagrees[:, None], ids.scatter(1, at[:, None], token), ids)


def redrafted(
    ids: Tensor, first: Tensor, said: Tensor, begin: int, at: Tensor, shift: Tensor, disagrees: Tensor
) -> tuple[Tensor, Tensor]:
    """The next draft (B, T) and its shift (B,) against the first one.

    said: (B, W), by the model, of places begin and on. at: (B,), the last place that is final; what follows the same
    token in the first draft follows it here, where it is found nearby, else what the model said after a wrong prefix.
    """
    length = ids.shape[1]
    place = torch.arange(length, device=ids.device)
    final = corrected(ids, said, begin, at, disagrees)
    near = (at + shift)[:, None] + torch.tensor(NEARBY, device=ids.device)
    same = (first.gather(1, near.clamp(0, length - 1)) == final.gather(1, at[:, None])) & (near > 0) & (near < length)
    found = same.any(1) & disagrees
    shift = torch.where(found, near.gather(1, same.int().argmax(1)[:, None])[:, 0] - at, shift)
    later = first.gather(1, (place + shift[:, None]).clamp(0, length - 1))
    seen = ids.clone()
    seen[:, begin : begin + said.shape[1]] = said
    beyond = place >= begin + said.shape[1]
    rest = torch.where(found[:, None] | (beyond & disagrees[:, None]), later, seen)
    return torch.where(place <= at[:, None], final, rest), shift

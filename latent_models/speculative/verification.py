"""Speculative greedy decoding: the model verifies all tokens of a draft in one forward pass.

A pass over the draft predicts the next token after each of its prefixes. The draft equals the greedily decoded text up
to the first token that differs from its prediction. That prediction is correct, too, and the rest gets a new draft.
Each pass accepts at least one token, and all of them if the draft is good. The text is that of greedy decoding for
every draft.
Stern et al. 2018, arXiv:1811.03115 (parallel verification); Santilli et al. 2023, arXiv:2305.10427 (predictions after a
wrong prefix are the next draft). After an inserted or a missing word a better draft is the part of the first draft that
follows the same token, so the first draft is searched for that token.
Shapes: B texts, T tokens with the start token, W of them verified in a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from latent_models.cross_entropy import MAX_LOGITS
from latent_models.generation.generator import Loop, generate_dropping_finished
from latent_models.key_value_cache import CACHE
from latent_models.output_layer import logits_of
from latent_models.speculative.logits_processors import active_processors, end_tokens, position_only

SEARCH_OFFSETS = (0, 1, -1, 2, -2, 3, -3, 4, -4)  # where the first draft may continue, likeliest offset first
# Window of a pass: 4 times the tokens accepted in the last pass, at least 4
WINDOW_GROWTH, MIN_WINDOW = 4, 4
MIN_ACCEPTED = 3  # tokens per pass; below this mean the rest is decoded token by token, which is cheaper


@dataclass
class DraftStats:
    """Counts of drafted texts and of the passes that verified them."""

    texts: int = 0
    passes: int = 0  # forward passes, summed over texts
    num_fallbacks: int = 0  # texts with a poor draft, which were decoded token by token

    def per_text(self) -> float:
        """Passes per text."""
        return self.passes / max(1, self.texts)


class SpeculativeLoop(nn.Module):
    """A GreedyLoop that verifies the drafts of a model, and counts its passes."""

    def __init__(self, draft_model: Any) -> None:
        """draft_model: has draft_ids(model, states (B, S, d_lm)) -> ids (B, n); a DraftModel."""
        super().__init__()
        self.draft_model, self.stats = draft_model, DraftStats()

    def forward(self, model: Any, states: Tensor) -> Callable[[Tensor], Loop]:
        ids = self.draft_model.draft_ids(model, states)
        return lambda rows: SpeculativeDecoding(ids[rows], self.stats)

    def pop_stats(self) -> DraftStats:
        """The counts since the last call."""
        stats, self.stats = self.stats, DraftStats()
        return stats


def pop_draft_stats(module: nn.Module) -> tuple[int, int]:
    """(passes, texts) of all speculative loops in a module, such as a latent space, since the last call; else (0,
    0)."""
    stats = [part.pop_stats() for part in module.modules() if isinstance(part, SpeculativeLoop)]
    return sum(s.passes for s in stats), sum(s.texts for s in stats)


class SpeculativeDecoding:
    """A decoding loop for `generate(custom_generate=...)`: greedy ids (B, T), within rounding, from drafts."""

    def __init__(self, draft: Tensor, stats: DraftStats) -> None:
        """draft: (B, n) ids; those after an end token are ignored. stats: updated in place."""
        self.draft, self.stats = draft, stats

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
        settings: dict[str, Any] = {
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
            "generation_config": generation_config,
        }
        stats, count, device = self.stats, len(input_ids), input_ids.device
        stats.texts += count
        if not position_only(logits_processor, stopping_criteria):
            return self._token_by_token(model, input_ids, settings, kwargs)
        limit, begin = stopping_criteria.max_length, input_ids.shape[1]
        ends = torch.cat([input_ids.new_empty(0), *(e.to(device) for e in end_tokens(stopping_criteria))])
        states, cache = kwargs["encoder_outputs"].last_hidden_state, kwargs[CACHE]
        first = ids = init_draft(input_ids, self.draft, ends, limit)
        pad = generation_config.pad_token_id
        output = torch.full_like(ids, pad)
        position = torch.arange(limit, device=device)
        rows = torch.arange(count, device=device)  # unfinished rows of `output`
        known = torch.full_like(rows, begin)  # final tokens of each row
        shift = torch.zeros_like(rows)  # position p of a row is position p + shift of its first draft
        cached, last, verified, drafting = 0, min(limit - 1, int(end_of(ids, ends, known).max())), 0, True
        while True:
            hidden = model.get_decoder()(
                input_ids=ids[:, cached:last],
                encoder_hidden_states=states,
                use_cache=True,
                **{CACHE: cache},
            ).last_hidden_state  # (b, W, d_lm)
            stats.passes, verified = stats.passes + len(rows), verified + len(rows)
            # (b, W), positions cached + 1 to last
            predicted = greedy_tokens(model, hidden, ids, cached, logits_processor)
            window = position[cached + 1 : last + 1]
            # final tokens stay, even if another kernel breaks a tie differently
            wrong = (predicted != ids[:, cached + 1 : last + 1]) & (window >= known[:, None])
            differs = wrong.any(1)
            at = torch.where(differs, wrong.int().argmax(1) + cached + 1, last)
            at = torch.maximum(at, known - 1)  # last final position now; some rows wait for others
            accepted, known = at + 1 - known, at + 1
            if drafting:
                ids, shift = next_draft(ids, first, predicted, cached + 1, at, shift, differs)
            else:
                ids = apply_correction(ids, predicted, cached + 1, at, differs)
            end = end_of(ids, ends, torch.full_like(known, begin))
            final = position <= torch.minimum(end, at)[:, None]
            output[rows] = torch.where(final, ids, output[rows])
            staying = ((end > at) & (known < limit)).nonzero()[:, 0]
            if not len(staying):
                return output
            if len(staying) < len(rows):
                rows, ids, first, states = rows[staying], ids[staying], first[staying], states[staying]
                known, shift, accepted = known[staying], shift[staying], accepted[staying]
                cache.batch_select_indices(staying)
            mean = accepted.sum() / (accepted > 0).sum().clamp(min=1)  # over rows that did not wait
            slowest, reach, mean, final = torch.stack(
                [known.min(), end_of(ids, ends, known).max(), mean.ceil().long(), (output[:, begin:] != pad).sum()]
            ).tolist()
            if drafting and final < MIN_ACCEPTED * verified:
                drafting, stats.num_fallbacks = False, stats.num_fallbacks + len(rows)
            cache.crop(slowest - 1 - last)  # negative: the number of tokens to remove
            window_size = max(MIN_WINDOW, WINDOW_GROWTH * mean) if drafting else 1
            cached, last = slowest - 1, min(limit - 1, reach, slowest - 1 + window_size)

    def _token_by_token(
        self, model: Any, input_ids: Tensor, settings: dict[str, Any], kwargs: dict[str, Any]
    ) -> Tensor:
        output = generate_dropping_finished(model, input_ids, **settings, **kwargs)
        self.stats.num_fallbacks += len(output)
        pad = settings["generation_config"].pad_token_id
        self.stats.passes += int((output[:, input_ids.shape[1] :] != pad).sum())
        return output


def init_draft(input_ids: Tensor, draft: Tensor, ends: Tensor, limit: int) -> Tensor:
    """Ids (B, limit): the start tokens, then the draft; end tokens after its end, and where it is too short."""
    begin = input_ids.shape[1]
    draft = draft[:, : limit - begin]
    if len(ends):
        ended = torch.isin(draft, ends).int().cumsum(1) > 0
        draft = torch.where(ended, ends[0], draft)
    rest = limit - begin - draft.shape[1]
    filler = draft.new_full((len(draft), rest), int(ends[0]) if len(ends) else 0)
    return torch.cat([input_ids, draft, filler], 1)


def end_of(ids: Tensor, ends: Tensor, start: Tensor) -> Tensor:
    """Position (B,) of the first end token in ids (B, T) at `start` (B,) or later; T where there is none."""
    position = torch.arange(ids.shape[1], device=ids.device)
    found = torch.isin(ids, ends) & (position >= start[:, None])
    return torch.where(found.any(1), found.int().argmax(1), ids.shape[1])


def greedy_tokens(model: Any, hidden: Tensor, ids: Tensor, cached: int, processors: LogitsProcessorList) -> Tensor:
    """The token (B, W) that greedy decoding chooses after each of the prefixes ids[:, : cached + 1], + 2, ...

    hidden: (B, W, d_lm). Logits (B, W, V) are computed for some rows at a time.
    """
    active = [active_processors(processors, cached + 1 + j) for j in range(hidden.shape[1])]
    size = max(1, MAX_LOGITS // (hidden.shape[1] * model.get_output_embeddings().weight.shape[0]))
    found = []
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        logits = logits_of(model, hidden[part])
        for j, those in enumerate(active):
            scores = logits[:, j].to(torch.float32, copy=True) if those else None
            for processor in those:
                scores = processor(ids[part, : cached + 1 + j], scores)
            if scores is not None:
                logits[:, j] = scores
        found.append(logits.argmax(-1))
    return torch.cat(found)


def apply_correction(ids: Tensor, predicted: Tensor, begin: int, at: Tensor, differs: Tensor) -> Tensor:
    """Ids (B, T) with the predicted token at position `at` (B,), in the rows whose draft differs there.

    predicted: (B, W), of positions begin and on.
    """
    token = predicted.gather(1, (at - begin).clamp(max=predicted.shape[1] - 1)[:, None])
    return torch.where(differs[:, None], ids.scatter(1, at[:, None], token), ids)


def next_draft(
    ids: Tensor, first: Tensor, predicted: Tensor, begin: int, at: Tensor, shift: Tensor, differs: Tensor
) -> tuple[Tensor, Tensor]:
    """The next draft (B, T) and its shift (B,) against the first one.

    predicted: (B, W), of positions begin and on. at: (B,), the last final position. The draft continues with what
    follows the same token nearby in the first draft; where there is none, with the predictions after a wrong prefix.
    """
    length = ids.shape[1]
    position = torch.arange(length, device=ids.device)
    final = apply_correction(ids, predicted, begin, at, differs)
    near = (at + shift)[:, None] + torch.tensor(SEARCH_OFFSETS, device=ids.device)
    same = (first.gather(1, near.clamp(0, length - 1)) == final.gather(1, at[:, None])) & (near > 0) & (near < length)
    found = same.any(1) & differs
    shift = torch.where(found, near.gather(1, same.int().argmax(1)[:, None])[:, 0] - at, shift)
    later = first.gather(1, (position + shift[:, None]).clamp(0, length - 1))
    guess = ids.clone()
    guess[:, begin : begin + predicted.shape[1]] = predicted
    beyond = position >= begin + predicted.shape[1]
    rest = torch.where(found[:, None] | (beyond & differs[:, None]), later, guess)
    return torch.where(position <= at[:, None], final, rest), shift

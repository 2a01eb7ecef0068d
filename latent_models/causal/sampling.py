"""Nucleus sampling and greedy decoding of a causal language model, in batches with a cache of keys and values.

Each text draws its own random numbers, so that it depends on its prompt and its seed, and, up to rounding of matrix
products, not on the texts that it is sampled with. A finished text leaves the batch and the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latent_models.causal.boundaries import Boundaries
from latent_models.key_value_cache import CACHE
from utils.float64 import widened
from utils.heartbeat import beat

CHECK_EVERY = {"cpu": 1}  # tokens between checks for finished texts; a check waits for the device
CHECK_EVERY_ELSEWHERE = 8
Processor = Callable[[Tensor, Tensor], Tensor]
# Tokens that are sorted at first, which mostly hold the nucleus: on a CPU, sorting a whole vocabulary takes longer than
# the network.
FEW_TOKENS = {"cpu": 512}
COMPACT_BELOW = 0.8  # share of unfinished texts below which finished ones are dropped; dropping copies the cache


@torch.no_grad()
def sample_ids(
    model: Any,
    boundaries: Boundaries,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor | None,
    *,
    max_new_tokens: int,
    vocabulary: int,
    top_p: float = 0.95,
    temperature: float = 1.0,
    top_k: int = 0,
    prefix: Tensor | None = None,
    prefix_mask: Tensor | None = None,
    processors: Sequence[Processor] = (),
) -> list[list[int]]:
    """Token ids that follow each prompt, without the end token, at most max_new_tokens of them.

    model: a causal language model of transformers in evaluation mode. prompts: token ids, at least one each.
    uniforms: (B, max_new_tokens) uniform in [0, 1), the random numbers of each text; None: the likeliest token each
    time (greedy). vocabulary: number of token ids of the tokenizer; a model may have more. top_k: the nucleus holds at
    most so many tokens; 0: no limit. prefix: (B, P, d) vectors after the prompts, which are then of one length.
    prefix_mask: (B, P) bool; None: all valid. processors: change logits (B, V) given the
    ids (B, t) that follow the prompts, as those of transformers do.
    """
    device, count = next(model.parameters()).device, len(prompts)
    width = max(map(len, prompts))
    ids = torch.full((count, width), boundaries.pad_id)
    mask = torch.zeros(count, width, dtype=torch.long)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all texts go on at one position
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    if prefix is not None:
        before = mask.new_ones(prefix.shape[:2]) if prefix_mask is None else prefix_mask.long()
        mask = torch.cat([mask, before], 1)
    draws = None if uniforms is None else uniforms.to(device)
    every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
    output = torch.full((count, max_new_tokens), boundaries.end_id, device=device)
    rows = torch.arange(count, device=device)  # texts that are still in the batch
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    blocked = torch.tensor(boundaries.forbidden, device=device, dtype=torch.long)
    cache = None
    for step in range(max_new_tokens):
        beat()
        given: dict[str, Tensor] = {"input_ids": ids}
        if prefix is not None and step == 0:
            words = model.get_input_embeddings()(ids)
            given = {"inputs_embeds": torch.cat([words, prefix.to(words)], 1)}
        out = model(
            **given,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
            **{CACHE: cache},
        )
        cache = out[CACHE]
        logits = out.logits[:, -1].float()
        logits[:, vocabulary:] = -torch.inf
        logits[:, blocked] = -torch.inf
        for process in processors:
            logits = process(output[rows, :step], logits)
        token = logits.argmax(-1) if draws is None else pick(logits, draws[rows, step], top_p, temperature, top_k)
        token = token.masked_fill(ended, boundaries.end_id)
        output[rows, step] = token
        ended = ended | (token == boundaries.end_id)
        if step + 1 == max_new_tokens:
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if (step + 1) % every:
            continue
        staying = int((~ended).sum())
        if not staying:
            break
        if staying <= COMPACT_BELOW * len(ended):
            stay = (~ended).nonzero()[:, 0]
            rows, ids, positions, mask, ended = rows[stay], ids[stay], positions[stay], mask[stay], ended[stay]
            cache.batch_select_indices(stay)
    return [_until_end(row, boundaries.end_id) for row in output.tolist()]


def pick(logits: Tensor, uniform: Tensor, top_p: float, temperature: float, top_k: int = 0) -> Tensor:
    """Draw a token (B,) of each row from its nucleus. logits: (B, V). uniform: (B,) in [0, 1). top_k: see sample_ids.

    The nucleus is the smallest set of the likeliest tokens whose probabilities add up to top_p: Holtzman et al. 2020,
    arXiv:1904.09751, eq. 2. The token is that at which the cumulated probability passes `uniform` times their sum.
    """
    probabilities = (logits / temperature).softmax(-1)
    size = probabilities.shape[-1]
    if top_k:
        values, order = _likeliest(probabilities, min(size, top_k))
        return _draw(values / values.sum(-1, keepdim=True), order, uniform, top_p)
    if top_p >= 1:  # all tokens: their order does not matter
        return _draw(probabilities, torch.arange(size, device=logits.device).expand_as(probabilities), uniform, top_p)
    few = min(size, FEW_TOKENS.get(logits.device.type, size))
    values, order = _likeliest(probabilities, few)
    token = _draw(values, order, uniform, top_p)
    if few < size:
        rows = (widened(values).sum(-1) < top_p).nonzero()[:, 0]
        if len(rows):
            token[rows] = _draw(*_likeliest(probabilities[rows], size), uniform[rows], top_p)
    return token


def _draw(probabilities: Tensor, ids: Tensor, uniform: Tensor, top_p: float) -> Tensor:
    """Tokens (B,). probabilities (B, n) of ids (B, n), the likeliest first unless top_p is 1."""
    cumulated = widened(probabilities).cumsum(-1)
    inside = (cumulated - probabilities) < top_p  # the first token is always inside
    last = inside.sum(-1, keepdim=True) - 1  # also where rounding would pass the end
    total = cumulated.gather(1, last)
    cumulated = cumulated.where(inside, torch.inf)
    at = torch.searchsorted(cumulated, widened(uniform)[:, None] * total, right=True)
    return ids.gather(1, torch.minimum(at, last))[:, 0]


def _likeliest(probabilities: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Falling probabilities (B, number) of the likeliest tokens, and their ids; of equal ones the lower id first."""
    if number < probabilities.shape[-1]:
        ids = probabilities.topk(number, dim=-1, sorted=False).indices.sort(dim=-1).values
        values, at = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
        return values, ids.gather(-1, at)
    return probabilities.sort(dim=-1, descending=True, stable=True)


def _until_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids

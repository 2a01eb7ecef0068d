"""The loop that writes token after token; rows that have ended leave the batch, with their place in the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

CHECK_EVERY = {"cpu": 1}  # tokens between looks at which rows have ended; a look waits for the device
CHECK_EVERY_ELSEWHERE = 8
COMPACT_BELOW = 0.8  # share of rows still writing at which those that have ended leave: moving the cache costs, too


@torch.no_grad()
def generate_dropping_finished(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **kwargs: Any,
) -> Tensor:
    """Greedy or sampled ids (B, T), as transformers writes them, but rows that have ended leave the batch.

    A decoding loop for `generate(custom_generate=...)`, which prepares its arguments. What sampling draws is drawn for
    the whole batch, so that a row that leaves changes no other.
    """
    count, device = len(input_ids), input_ids.device
    pad, limit = generation_config.pad_token_id, stopping_criteria.max_length
    look = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
    written = input_ids.new_full((count, limit), pad)
    rows = torch.arange(count, device=device)  # of `written` that are still in the batch
    ids, ended, first = input_ids, torch.zeros(count, dtype=torch.bool, device=device), True
    while True:
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=None if first else 1, is_first_iteration=first, **kwargs
        )
        outputs, first = model(**inputs, return_dict=True), False
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=True)
        scores = logits_processor(ids, outputs.logits[:, -1].to(torch.float32, copy=True))
        if generation_config.do_sample:
            drawn = scores.new_zeros(count, scores.shape[1])
            drawn[:, pad] = 1  # of rows that have left
            drawn[rows] = scores.softmax(-1)
            token = torch.multinomial(drawn, 1)[rows, 0]
        else:
            token = scores.argmax(-1)
        ids = torch.cat([ids, token.masked_fill(ended, pad)[:, None]], 1)
        ended = ended | stopping_criteria(ids, None)
        length = ids.shape[1]
        if length < limit and length % look:
            continue
        staying = count if length == limit else int((~ended).sum())
        if length == limit or not staying:
            written[rows, :length] = ids
            return written
        if staying <= COMPACT_BELOW * len(ids):
            stay = (~ended).nonzero()[:, 0]
            written[rows, :length] = ids
            rows, ids, ended = rows[stay], ids[stay], ended[stay]
            kwargs["past_key_values"].batch_select_indices(stay)
            kwargs["attention_mask"] = kwargs["attention_mask"][stay]
            states = kwargs["encoder_outputs"].last_hidden_state[stay]
            kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=states)

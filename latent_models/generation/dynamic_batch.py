"""Decoding loop that drops finished sequences from the batch and the key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

CHECK_EVERY = {"cpu": 1}  # tokens between checks for finished rows; a check synchronizes with the device
CHECK_EVERY_ELSEWHERE = 8
COMPACT_BELOW = 0.8  # share of unfinished rows below which finished ones are dropped: copying the cache costs too


@torch.no_grad()
def generate_dropping_finished(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **kwargs: Any,
) -> Tensor:
    """Greedy or sampled ids (B, T), equal to those of transformers, with finished rows dropped from the batch.

    A decoding loop for `generate(custom_generate=...)`, which prepares its arguments. Sampling draws for the whole
    batch, so that dropping a row does not change the others.
    """
    count, device = len(input_ids), input_ids.device
    pad, limit = generation_config.pad_token_id, stopping_criteria.max_length
    every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
    output = input_ids.new_full((count, limit), pad)
    rows = torch.arange(count, device=device)  # rows of `output` that are still in the batch
    ids, ended, first = input_ids, torch.zeros(count, dtype=torch.bool, device=device), True
    while True:
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=None if first else 1, is_first_iteration=first, **kwargs
        )
        outputs, first = model(**inputs, return_dict=True), False
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=True)
        scores = logits_processor(ids, outputs.logits[:, -1].to(torch.float32, copy=True))
        if generation_config.do_sample:
            probabilities = scores.new_zeros(count, scores.shape[1])
            probabilities[:, pad] = 1  # of dropped rows
            probabilities[rows] = scores.softmax(-1)
            token = torch.multinomial(probabilities, 1)[rows, 0]
        else:
            token = scores.argmax(-1)
        ids = torch.cat([ids, token.masked_fill(ended, pad)[:, None]], 1)
        ended = ended | stopping_criteria(ids, None)
        length = ids.shape[1]
        if length < limit and length % every:
            continue
        staying = count if length == limit else int((~ended).sum())
        if length == limit or not staying:
            output[rows, :length] = ids
            return output
        if staying <= COMPACT_BELOW * len(ids):
            stay = (~ended).nonzero()[:, 0]
            output[rows, :length] = ids
            rows, ids, ended = rows[stay], ids[stay], ended[stay]
            kwargs["past_key_values"].batch_select_indices(stay)
            kwargs["attention_mask"] = kwargs["attention_mask"][stay]
            states = kwargs["encoder_outputs"].last_hidden_state[stay]
            kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=states)

"""Faster generation with identical output; decoding settings are in decoding.py.

transformers decodes a batch until its longest text ends. Here:
- a finished sequence leaves the batch and the key-value cache (generate_dropping_finished);
- beams cannot leave one by one, so texts of similar lengths, where lengths are known, are searched together;
- a model that generates in bfloat16 keeps a copy of its weights in it: autocast would convert frozen weights for every
  token;
- a token is computed without the Python of transformers around it (decoder_steps);
- a greedy loop may be attached that produces several tokens per forward pass.
Each has its flag (GenerationOptions).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutput

from latent_models.attention import chooses_kernels
from latent_models.generation.buckets import buckets
from latent_models.generation.cache import make_cache
from latent_models.generation.decoder_steps import has_step, stepwise
from latent_models.generation.options import GenerationOptions
from latent_models.key_value_cache import CACHE
from utils.errors import UserError
from utils.heartbeat import beat
from utils.sharding import is_sharded

STEP_ROWS = {"cpu": 32}  # fixed cost of one decoding step, in rows of a batch
STEP_ROWS_ELSEWHERE = 256
CHECK_EVERY = {"cpu": 1}  # tokens between checks for finished rows; a check synchronizes with the device
CHECK_EVERY_ELSEWHERE = 8
COMPACT_BELOW = 0.8  # share of unfinished rows below which finished ones are dropped; dropping copies the cache
Loop = Callable[..., Tensor]  # the `custom_generate` argument of transformers' generate
GreedyLoop = Callable[[Any, Tensor], Callable[[Tensor], Loop]]
"""(model, states (B, S, d_lm)) -> function: rows (b,) of the states -> a loop that decodes these rows greedily.

The loop gives the same ids as greedy decoding by transformers."""


class TokenGenerator:
    """Generates token ids from encoder states."""

    def __init__(self, options: GenerationOptions | None = None) -> None:
        self.options = options or GenerationOptions()
        self._copy: tuple[Any, Any] | None = None  # version of the weights, and the model in bfloat16

    def generate_ids(
        self,
        model: Any,
        states: Tensor,
        mask: Tensor | None,
        decoding: dict[str, Any],
        greedy_loop: GreedyLoop | None = None,
    ) -> list[Tensor]:
        """Ids of each text, with special tokens and possibly padding.

        states: (B, S, d_lm); mask: (B, S), None where all of them may be attended to. decoding: arguments of
        transformers' generate. A strategy that samples runs in one batch, so that its texts depend only on its seed;
        where the rows are `first` and following ones of a larger batch, draw_rows=(first, size of that batch) in it
        makes them the same texts.
        greedy_loop: used where the strategy is greedy and mask is None.
        """
        device, autocast = states.device, torch.is_autocast_enabled(states.device.type)
        decoding = dict(decoding)
        draw_rows = decoding.pop("draw_rows", None)
        dynamic = self.options.kv_cache == "dynamic" and not self.options.whole_batches
        make_loop = None
        if greedy_loop is not None and dynamic and mask is None and _is_greedy(decoding):
            make_loop = greedy_loop(model, states)
        precision = self.options.generation_dtype
        if precision == "run" and autocast and torch.get_autocast_dtype(device.type) == torch.bfloat16:
            precision = "bf16"
        dtype, copied = None, precision == "bf16" and not is_sharded(model)
        if precision == "bf16" and not copied:  # sharded weights cannot be copied
            dtype, autocast = torch.bfloat16, True
        with torch.autocast(device.type, dtype, enabled=autocast and precision != "fp32" and not copied):
            model = self._in_bfloat16(model) if copied else model
            states = states.to(model.dtype)
            generated: list[Tensor | None] = [None] * len(states)
            for rows in self._buckets(states, mask, decoding) if dynamic else [torch.arange(len(states))]:
                loop = None if make_loop is None else make_loop(rows.to(device))
                part, part_mask = states[rows.to(device)], None if mask is None else mask[rows.to(device)]
                if part_mask is not None and dynamic:
                    positions = torch.arange(1, part_mask.shape[1] + 1, device=device)
                    longest = max(1, int((part_mask.any(0) * positions).max()))
                    part, part_mask = part[:, :longest], part_mask[:, :longest]
                own_cache = dynamic and loop is None
                if own_cache and decoding.get("num_beams", 1) == 1:
                    loop = partial(generate_dropping_finished, draw_rows=draw_rows)
                if draw_rows and loop is None:  # transformers draws for the rows that it is given
                    part, part_mask = (
                        _in_batch(part, *draw_rows),
                        None if part_mask is None else _in_batch(part_mask, *draw_rows),
                    )
                found = self._generate(model, part, part_mask, decoding, loop, own_cache)
                found = found[draw_rows[0] : draw_rows[0] + len(rows)] if draw_rows and loop is None else found
                for row, ids in zip(rows.tolist(), found, strict=True):
                    generated[row] = ids
        return [ids for ids in generated if ids is not None]

    def _generate(
        self,
        model: Any,
        states: Tensor,
        mask: Tensor | None,
        decoding: dict[str, Any],
        loop: Loop | None,
        own_cache: bool,
    ) -> Any:
        """Ids (B, T) of one batch. loop: replaces that of transformers. own_cache: use that of cache.py."""
        masked = mask is not None
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        kwargs: dict[str, Any] = {}
        if loop is not None:
            kwargs["custom_generate"] = loop
        elif self.options.kv_cache == "static":
            kwargs["cache_implementation"] = "static"
        steps: AbstractContextManager[None] = nullcontext()
        if own_cache and chooses_kernels(model):
            kwargs[CACHE] = make_cache(model, decoding.get("num_beams", 1))
            if has_step(model) and not torch.is_autocast_enabled(states.device.type) and not is_sharded(model):
                steps = stepwise(model, masked)
        with steps:
            return model.generate(
                # a new output each call: generate expands it in place for beams
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=mask.long(),
                **kwargs,
                **decoding,
            )

    def _buckets(self, states: Tensor, mask: Tensor | None, decoding: dict[str, Any]) -> list[Tensor]:
        """Rows that are decoded together: all of them, except for beam search over texts of known lengths.

        Lengths of compressed texts are unknown: a greedy pass that finds them costs what they save. Drafts reveal them,
        but where a draft is poor, every part would fall back to decoding token by token.
        """
        beams = decoding.get("num_beams", 1)
        if beams == 1 or mask is None or decoding.get("do_sample"):
            return [torch.arange(len(states))]
        return buckets(mask.sum(1).cpu(), STEP_ROWS.get(states.device.type, STEP_ROWS_ELSEWHERE) / beams)

    def _in_bfloat16(self, model: Any) -> Any:
        """A copy of the model in bfloat16: made again when the weights change or move, filled again while they
        train."""
        version = (model, [(id(p), p._version, p.device) for p in model.parameters()])
        if self._copy is None or self._copy[0] != version:
            self._copy = version, deepcopy(model).requires_grad_(False).to(torch.bfloat16).eval()
        elif any(p.requires_grad for p in model.parameters()):  # fused optimizers do not change versions
            with torch.no_grad():
                for own, p in zip(self._copy[1].parameters(), model.parameters(), strict=True):
                    own.copy_(p)
        return self._copy[1]


@torch.no_grad()
def generate_dropping_finished(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    draw_rows: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Greedy or sampled ids (B, T), equal to those of transformers, with finished rows dropped from the batch.

    A decoding loop for `generate(custom_generate=...)`, which prepares its arguments. Sampling draws for the whole
    batch, so that dropping a row does not change the others. draw_rows: (first row, number of rows) of a larger batch,
    whose numbers these rows get.
    """
    count, device = len(input_ids), input_ids.device
    first_row, drawn = draw_rows or (0, count)
    pad, limit = generation_config.pad_token_id, stopping_criteria.max_length
    every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
    output = input_ids.new_full((count, limit), pad)
    rows = torch.arange(count, device=device)  # rows of `output` that are still in the batch
    ids, ended, first = input_ids, torch.zeros(count, dtype=torch.bool, device=device), True
    while True:
        beat()
        inputs = model.prepare_inputs_for_generation(
            ids, next_sequence_length=None if first else 1, is_first_iteration=first, **kwargs
        )
        outputs, first = model(**inputs, return_dict=True), False
        kwargs = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=True)
        scores = logits_processor(ids, outputs.logits[:, -1].to(torch.float32, copy=True))
        if generation_config.do_sample:
            probabilities = scores.new_zeros(drawn, scores.shape[1])
            probabilities[:, pad] = 1  # dropped rows generate padding
            probabilities[first_row + rows] = scores.softmax(-1)
            token = torch.multinomial(probabilities, 1)[first_row + rows, 0]
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
            kwargs[CACHE].batch_select_indices(stay)
            kwargs["attention_mask"] = kwargs["attention_mask"][stay]
            states = kwargs["encoder_outputs"].last_hidden_state[stay]
            kwargs["encoder_outputs"] = BaseModelOutput(last_hidden_state=states)


def _in_batch(rows: Tensor, first: int, size: int) -> Tensor:
    """A batch (size, ...) that holds the rows from `first` on; the others repeat the first row."""
    batch = rows[:1].repeat(size, *[1] * (rows.ndim - 1))
    batch[first : first + len(rows)] = rows
    return batch


def _is_greedy(decoding: dict[str, Any]) -> bool:
    return decoding.get("num_beams", 1) == 1 and not decoding.get("do_sample", False)


def make_token_generator(options: GenerationOptions, model: Any, name: str) -> TokenGenerator:
    """A token generator for a model; UserError if transformers has no static cache for its family."""
    if options.kv_cache == "static" and not getattr(model, "_can_compile_fullgraph", False):
        raise UserError(
            f"--kv_cache static: transformers has no static cache for {name} ({model.config.model_type}): leave it out"
        )
    return TokenGenerator(options)

"""A token of an encoder-decoder without the Python of transformers around it.

Where a model is small or a GPU is fast, most of the time of a token is calls of Python: modules in modules, masks that
hide nothing, results that nobody reads. A step of STEPS is the arithmetic of the decoder alone, on the same weights and
in the cache of cache.py, with queries, keys and values in one product. `generate` and its loops stay those of
transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import Seq2SeqLMOutput

from latent_models.generation.bart_step import BartStep
from latent_models.generation.t5_step import T5Step
from latent_models.key_value_cache import CACHE

Step = Callable[[Tensor, Any, "Tensor | None"], Tensor]
STEPS: Mapping[str, Callable[[Any], Step]] = {"bart": BartStep, "mbart": BartStep, "t5": T5Step, "mt5": T5Step}


def has_step(model: Any) -> bool:
    """Whether STEPS has the decoder of a model of transformers, and nothing was added to its layers (adapters).

    Not in float16, where T5 clamps its states.
    """
    if getattr(model.config, "model_type", None) not in STEPS or model.training or model.dtype == torch.float16:
        return False
    inner = (m for m in model.get_decoder().modules() if isinstance(m, nn.Linear) or hasattr(m, "base_layer"))
    return all(type(m) is nn.Linear for m in (*inner, model.lm_head))


@contextmanager
def stepwise(model: Any, masked: bool) -> Iterator[None]:
    """Context manager: inside it a model computes tokens after the first by its step, in a cache of make_cache.

    Everything else, the first token included, is computed by transformers. masked: whether attention_mask hides states
    of the encoder. The step has the weights that the model has now.
    """
    plain, step = model.forward, STEPS[model.config.model_type](model)

    @wraps(plain)  # whose arguments transformers reads
    def forward(*args: Any, **kwargs: Any) -> Any:
        ids, cache = kwargs.get("decoder_input_ids"), kwargs.get(CACHE)
        if cache is None or not all(cache.is_updated.values()) or ids is None or ids.shape[1] != 1:
            return plain(*args, **kwargs)
        mask = None
        if masked:  # that of a text once for all its beams
            beams = len(ids) // len(cache.cross_attention_cache.layers[0].keys)
            mask = kwargs["attention_mask"][::beams, None, None, :].bool()
        return Seq2SeqLMOutput(logits=step(ids, cache, mask), **{CACHE: cache})

    model.forward = forward
    try:
        yield
    finally:
        del model.forward

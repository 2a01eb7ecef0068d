"""The output layer of a language model: from the last states of its decoder to logits, also for some states only."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def output_layer(model: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (V, d_lm), and bias (V,) or None, of the layer that gives the logits."""
    bias = getattr(model, "final_logits_bias", None)  # BART has one
    return model.get_output_embeddings().weight, None if bias is None else bias[0]


def scale_hidden(model: Any, hidden: Tensor) -> Tensor:
    """The decoder's last states (..., d_lm), scaled as the output layer expects them."""
    scaled = getattr(model.config, "scale_decoder_outputs", False)  # T5 with tied embeddings
    return hidden * model.model_dim**-0.5 if scaled else hidden


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Logits (..., V) of the decoder's last states (..., d_lm), as the model itself computes them."""
    _, bias = output_layer(model)
    logits = model.get_output_embeddings()(scale_hidden(model, hidden))
    return logits if bias is None else logits + bias

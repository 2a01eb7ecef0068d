"""Cross-entropy over a large vocabulary in chunks, so that not all logits are in memory at once.

Logits of 256 texts of 64 tokens over 50,000 words take 3.3 GB in float32, and their gradient as much again. Here the
output layer is applied to a chunk of tokens at a time. With frozen output weights, the forward pass also computes the
gradient of the states, so nothing is computed twice; with trained ones, the backward pass computes the logits of each
chunk again. After the idea of Wijmans et al. 2024, arXiv:2411.09009, in plain torch.

Shapes: N tokens of d channels, V words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOGITS = 2**25  # 128 MB in float32


def chunked_nll(states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """-log softmax(states weight^T + bias)[labels], in nats: (N, d), (V, d), (V,), (N,) -> (N,) float32.

    Products are in the dtype of states and weight, the rest in float32. Equals F.cross_entropy within rounding.
    """
    chunk = max(1, MAX_LOGITS // len(weight))
    if len(states) <= chunk:
        return F.cross_entropy(_logits(states, weight, bias), labels, reduction="none")
    return _ChunkedNll.apply(states, weight, bias, labels, chunk, torch.is_grad_enabled())


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = (states @ weight.t()).float()
    return logits if bias is None else logits + bias.float()


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each token's nll with respect to its logits, softmax - one-hot. Overwrites the logits."""
    torch.softmax(logits, dim=-1, out=logits)
    logits.scatter_add_(1, labels[:, None], logits.new_full((len(labels), 1), -1.0))
    return logits


def _nll_and_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """nll (N,), and its gradient as _error. Overwrites the logits.

    One softmax for both: of the largest logit m its probability p gives logsumexp = m - log p, and p is at least 1 / V.
    """
    largest, own = logits.amax(-1), logits.gather(1, labels[:, None])[:, 0]
    torch.softmax(logits, dim=-1, out=logits)
    nll = largest - logits.amax(-1).log() - own
    logits.scatter_add_(1, labels[:, None], logits.new_full((len(labels), 1), -1.0))
    return nll, logits


class _ChunkedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int, learns: bool
    ) -> Tensor:
        nll = torch.empty(len(states), device=states.device)
        of_states, of_weight, of_bias = (needed and learns for needed in ctx.needs_input_grad[:3])
        trains = of_weight or of_bias
        unit_grad = torch.empty_like(states) if of_states and not trains else None
        for at in range(0, len(states), chunk):
            part = slice(at, at + chunk)
            logits = _logits(states[part], weight, bias)
            if unit_grad is None:
                nll[part] = F.cross_entropy(logits, labels[part], reduction="none")
            else:  # for a gradient of 1 per token; backward multiplies by the actual gradient
                nll[part], error = _nll_and_error(logits, labels[part])
                unit_grad[part] = error.to(weight.dtype) @ weight
        ctx.chunk, ctx.trains = chunk, trains
        ctx.save_for_backward(unit_grad, *((states, weight, bias, labels) if trains else ()))
        return nll

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # (N,)
        if not ctx.trains:
            (unit_grad,) = ctx.saved_tensors
            return (
                (None if unit_grad is None else unit_grad * grad[:, None].to(unit_grad.dtype)),
                None,
                None,
                None,
                None,
                None,
            )
        _, states, weight, bias, labels = ctx.saved_tensors
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for at in range(0, len(states), ctx.chunk):
            part = slice(at, at + ctx.chunk)
            error = _error(_logits(states[part], weight, bias), labels[part]) * grad[part, None]
            if of_bias is not None:
                of_bias += error.sum(0)
            error = error.to(weight.dtype)
            if of_states is not None:
                of_states[part] = error @ weight
            if of_weight is not None:
                of_weight += error.t() @ states[part]
        return (
            of_states,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )

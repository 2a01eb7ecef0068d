"""The denoising network of the method's second release: a pre-norm transformer on latents.

    z_t, noise level, mask, condition, x0_self_cond  ->  prediction (of eps, x0, v or flow)

Lovelace et al. 2023, arXiv:2212.09462. Other networks: see DENOISERS of model/__init__.py.
Shapes: B texts, L latent positions, d channels of a latent, D width of the network (--tx_dim).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import HEAD_DIM, attention_dtype, check_heads, mask_bias
from model.blocks import TimeEmbedding, make_backbone, project_in_float32
from model.conditions import (
    ClassLabels,
    SourceTokens,
    check_classes,
    check_condition,
    check_length,
    concat_self_cond,
)
from model.linear_denoiser import LinearDenoiser, add_linear
from model.options import DenoiserOptions
from utils.records import Condition


class Denoiser(nn.Module):
    """Self-conditioning on the channels, class in the time vector, source by cross-attention."""

    def __init__(
        self, latent_dim: int, max_len: int, options: DenoiserOptions, *, num_classes: int = 0, source_dim: int = 0
    ) -> None:
        """latent_dim: d. max_len: size of the position table. num_classes: used with options.class_conditional.

        source_dim: channels of the source's encoder states; 0: no source.
        """
        super().__init__()
        dim = options.tx_dim
        check_heads(dim, HEAD_DIM, "--tx_dim")
        num_classes = check_classes(options.class_conditional, num_classes)
        self.latent_dim, self.max_len, self.self_condition = latent_dim, max_len, options.self_condition

        self.time_embedding = TimeEmbedding(dim)
        self.time_to_token = nn.Linear(4 * dim, dim)
        self.class_labels = ClassLabels(num_classes, dim) if num_classes else None
        self.class_to_time = nn.Linear(dim, 4 * dim) if num_classes else None
        self.source_tokens = SourceTokens(source_dim, dim) if source_dim else None
        self.init_self_cond = nn.Parameter(0.02 * torch.randn(1, latent_dim)) if options.self_condition else None
        self.input_proj = nn.Linear(latent_dim * (2 if options.self_condition else 1), dim)
        self.positions = nn.Embedding(max_len, dim)
        self.trunk = make_backbone(options, cross=source_dim > 0)
        self.norm = nn.LayerNorm(dim)
        self.output_proj = nn.Linear(dim, latent_dim * options.outputs)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)
        self.linear: LinearDenoiser | None = None  # --linear_denoiser: set by a caller that knows the objective

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        condition: Condition | None = None,
        x0_self_cond: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict from z_t (B, L, d) at noise level `time` (B,), in [0, 1]: alpha_bar(t), or the step's index / 1000.

        time: (1,) where all rows have the same level, so that its embedding is computed once.
        mask: (B, L) bool, True where there is text; None: everywhere, which is faster.
        condition: None is the null condition.
        x0_self_cond: (B, L, d), an earlier estimate of x0; a network without self-conditioning ignores it.
        self_cond_mask: (B,) bool; where it is False, and without x0_self_cond, the learned init_self_cond replaces it.
        Returns (B, L, d), or (B, L, 2 d) with a learned variance, which comes last. Positions outside the mask never
        reach those inside it.
        """
        check_condition(condition, self.class_labels, self.source_tokens)
        rows, length = z.shape[:2]
        check_length(length, self.max_len)

        label = None
        if self.class_labels is not None and self.class_to_time is not None:
            label = self.class_to_time(self.class_labels(condition, rows))  # (B, 4 D)
        time_vector = self.time_embedding(time, label)  # (B, 4 D)

        x = self.input_proj(self.add_self_cond(z, x0_self_cond, self_cond_mask))  # (B, L, D)
        x = x + self.positions.weight[:length] * self.positions.embedding_dim**-0.5
        x = x + self.time_to_token(time_vector)[:, None, :]

        dtype = attention_dtype(z)
        bias = None if mask is None else mask_bias(mask, mask, dtype)  # (B, 1, L, L)
        memory = memory_bias = None
        if self.source_tokens is not None:
            memory, memory_mask = self.source_tokens(condition, rows)  # (B, S, D), (B, S)
            queries = mask if mask is not None else memory_mask.new_ones(rows, length)
            memory_bias = mask_bias(queries, memory_mask, dtype)  # (B, 1, L, S)

        x = self.trunk(x, time_vector, bias, memory, memory_bias)  # (B, L, D)
        out = project_in_float32(self.output_proj, self.norm(x))  # (B, L, d)
        return add_linear(self.linear, out, z, time, mask)

    def add_self_cond(self, z: Tensor, x0_self_cond: Tensor | None, self_cond_mask: Tensor | None) -> Tensor:
        """Concatenate z with the estimate of self-conditioning, if the network uses it."""
        if self.init_self_cond is None:
            return z
        return concat_self_cond(z, x0_self_cond, self_cond_mask, self.init_self_cond)

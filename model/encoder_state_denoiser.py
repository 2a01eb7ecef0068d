"""The denoising network of the method's first release, made for uncompressed encoder states.

Differs from `Denoiser`: attention is biased by relative position; the previous estimate, the class and the source are
tokens of one memory that each block attends to. The signature is the same. The source is our addition.
Shapes: B texts, L positions, d channels of a state, D width of the network (--tx_dim).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import HEAD_DIM, RelativePositions, attention_dtype, check_heads, mask_bias
from model.blocks import TimeEmbedding, make_backbone, project_in_float32
from model.conditions import (
    ClassLabels,
    SourceTokens,
    check_classes,
    check_condition,
    check_length,
    drop_to_null,
    null_tokens,
)
from model.options import DenoiserOptions
from utils.records import Condition


class SelfCondTokens(nn.Module):
    """The estimate of self-conditioning as memory tokens; the null token where there is none."""

    def __init__(self, latent_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(latent_dim, dim)
        self.null = nn.Parameter(torch.randn(1, dim))

    def forward(
        self, x0_self_cond: Tensor | None, mask: Tensor, self_cond_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns tokens (B, L, D) and their mask (B, L); one token without x0_self_cond."""
        if x0_self_cond is None:
            return null_tokens(len(mask), self.null)
        return drop_to_null(self.proj(x0_self_cond), mask, self_cond_mask, self.null)


class EncoderStateDenoiser(nn.Module):
    """Arguments and results as in `model.denoiser.Denoiser`; the first release gives index / 1000 as `time`."""

    def __init__(
        self, latent_dim: int, max_len: int, options: DenoiserOptions, *, num_classes: int = 0, source_dim: int = 0
    ) -> None:
        super().__init__()
        dim = options.tx_dim
        heads = check_heads(dim, HEAD_DIM, "--tx_dim")
        num_classes = check_classes(options.class_conditional, num_classes)
        self.latent_dim, self.max_len, self.self_condition = latent_dim, max_len, options.self_condition

        self.time_embedding = TimeEmbedding(dim)
        self.time_to_token = nn.Linear(4 * dim, dim)
        self.previous_tokens = SelfCondTokens(latent_dim, dim) if options.self_condition else None
        self.class_labels = ClassLabels(num_classes, dim) if num_classes else None
        self.source_tokens = SourceTokens(source_dim, dim) if source_dim else None
        self.input_proj = nn.Linear(latent_dim, dim)
        self.positions = nn.Embedding(max_len, dim)
        self.relative_positions = RelativePositions(heads)
        self.trunk = make_backbone(options, cross=bool(options.self_condition or num_classes or source_dim))
        self.norm = nn.LayerNorm(dim)
        self.output_proj = nn.Linear(dim, latent_dim * options.outputs)
        nn.init.zeros_(self.output_proj.weight)
        nn.init.zeros_(self.output_proj.bias)

    def forward(
        self,
        z: Tensor,
        time: Tensor,
        mask: Tensor | None = None,
        condition: Condition | None = None,
        x0_self_cond: Tensor | None = None,
        self_cond_mask: Tensor | None = None,
    ) -> Tensor:
        """See `Denoiser.forward`."""
        check_condition(condition, self.class_labels, self.source_tokens)
        rows, length = z.shape[:2]
        check_length(length, self.max_len)
        dtype = attention_dtype(z)
        visible = mask if mask is not None else torch.ones(rows, length, dtype=torch.bool, device=z.device)

        time_vector = self.time_embedding(time)  # (B, 4 D)
        x = self.input_proj(z)  # (B, L, D)
        x = x + self.positions.weight[:length] * self.positions.embedding_dim**-0.5
        x = x + self.time_to_token(time_vector)[:, None, :]

        bias = self.relative_positions(length).to(dtype)  # (1, H, L, L)
        if mask is not None:
            bias = bias + mask_bias(mask, mask, dtype)  # (B, H, L, L)
        memory, memory_mask = self.memory(visible, condition, x0_self_cond, self_cond_mask)  # (B, S, D), (B, S)
        memory_bias = None if memory_mask is None else mask_bias(visible, memory_mask, dtype)  # (B, 1, L, S)

        x = self.trunk(x, time_vector, bias, memory, memory_bias)  # (B, L, D)
        return project_in_float32(self.output_proj, self.norm(x))  # (B, L, d)

    def memory(
        self, mask: Tensor, condition: Condition | None, x0_self_cond: Tensor | None, self_cond_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the previous estimate, the class and the source, in this order, and which of them are visible."""
        parts: list[tuple[Tensor, Tensor]] = []
        if self.previous_tokens is not None:
            parts.append(self.previous_tokens(x0_self_cond, mask, self_cond_mask))
        if self.class_labels is not None:
            parts.append((self.class_labels(condition, len(mask))[:, None, :], mask.new_ones(len(mask), 1)))
        if self.source_tokens is not None:
            parts.append(self.source_tokens(condition, len(mask)))
        if not parts:
            return None, None
        tokens, masks = zip(*parts, strict=True)
        return torch.cat(tokens, dim=1), torch.cat(masks, dim=1)

"""A denoiser for latents of one or few vectors: a residual MLP on all positions at once, without attention.

    z_t, noise level, mask, condition, x0_self_cond  ->  prediction (of eps, x0, v or flow)

Its cost does not grow with the number of blocks times positions as that of a transformer does, and every weight sees
the whole latent. The blocks are residual MLPs modulated by the noise level, as in the denoising MLP of Li et al. 2024,
arXiv:2406.11838, section 3.2.
Shapes: B texts, L latent positions, d channels of a latent, D width of the network (--tx_dim), T width of the time
vector. The stream has one position: (B, 1, D).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import DROPOUT, ScaleShift, TimeEmbedding, project_in_float32
from model.conditions import (
    ClassLabels,
    SourceTokens,
    check_classes,
    check_condition,
    check_length,
    concat_self_cond,
)
from model.dropout import Dropout
from model.linear_denoiser import LinearDenoiser, add_linear
from model.options import DenoiserOptions
from utils.errors import UserError
from utils.records import Condition

EXPANSION = 2  # width of a block's hidden layer, as a multiple of D
TIME_SHARE = 4  # D / T: the noise level is one number, so its vector may be narrow
SMALLEST_TIME = 64  # T at least
POOLING_HEADS = 4  # weighted means of the source states


class MLPBlock(nn.Module):
    """A pre-norm residual branch of one hidden layer; the normalized input is modulated by the time vector."""

    def __init__(self, dim: int, time_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # scale_shift has scale and shift
        self.scale_shift = ScaleShift(time_dim, dim)
        self.up = nn.Linear(dim, EXPANSION * dim)
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(EXPANSION * dim, dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, 1, D); time: (B, T) or (1, T). Returns (B, 1, D)."""
        h = self.scale_shift(self.norm(x), time)
        return x + self.down(self.dropout(F.silu(self.up(h))))


class PooledSource(nn.Module):
    """Condition -> one vector per text: means of the projected source states, with learned weights.

    Where there is no source, the mean is the null token.
    """

    def __init__(self, source_dim: int, dim: int) -> None:
        super().__init__()
        self.tokens = SourceTokens(source_dim, dim)
        self.scores = nn.Linear(dim, POOLING_HEADS, bias=False)
        self.out = nn.Linear(POOLING_HEADS * dim, dim)

    def forward(self, condition: Condition | None, rows: int) -> Tensor:
        """Returns (B, 1, D)."""
        tokens, mask = self.tokens(condition, rows)  # (B, S, D), (B, S); at least one token of each text is visible
        scores = self.scores(tokens).float().masked_fill(~mask[..., None], -torch.inf)  # (B, S, H)
        weights = scores.softmax(dim=1).to(tokens.dtype).transpose(1, 2)  # (B, H, S)
        tokens = tokens.masked_fill(~mask[..., None], 0)  # 0 times a value that is not finite is not 0
        return self.out((weights @ tokens).flatten(1))[:, None, :]


class MLPDenoiser(nn.Module):
    """Arguments and results as in `model.denoiser.Denoiser`.

    Self-conditioning on the channels, class in the time vector, source as a vector that is added to the input. Blocks
    are always modulated by the noise level. Shorter latents are padded to max_len, so a padded one and an unpadded one
    give the same; which positions are visible is an input.
    """

    def __init__(
        self, latent_dim: int, max_len: int, options: DenoiserOptions, *, num_classes: int = 0, source_dim: int = 0
    ) -> None:
        """See `Denoiser`. max_len: L. The width may be any number."""
        super().__init__()
        if options.tx_depth < 1:
            raise UserError(f"--tx_depth is {options.tx_depth}: a denoiser needs at least 1 block")
        dim = options.tx_dim
        num_classes = check_classes(options.class_conditional, num_classes)
        self.latent_dim, self.max_len, self.self_condition = latent_dim, max_len, options.self_condition
        dropout = 0.0 if options.disable_dropout else DROPOUT

        quarter = 2 * max(SMALLEST_TIME // 8, round(dim / TIME_SHARE / 8))  # even: half sines, half cosines
        time_dim = 4 * quarter
        self.time_embedding = TimeEmbedding(quarter)
        self.time_to_token = nn.Linear(time_dim, dim)
        self.class_labels = ClassLabels(num_classes, dim) if num_classes else None
        self.class_to_time = nn.Linear(dim, time_dim) if num_classes else None
        self.source = PooledSource(source_dim, dim) if source_dim else None
        self.init_self_cond = nn.Parameter(0.02 * torch.randn(1, latent_dim)) if options.self_condition else None
        self.input_proj = nn.Linear(max_len * latent_dim * (2 if options.self_condition else 1), dim)
        self.length_proj = nn.Linear(max_len, dim, bias=False) if max_len > 1 else None
        self.blocks = nn.ModuleList(MLPBlock(dim, time_dim, dropout) for _ in range(options.tx_depth))
        self.norm = nn.LayerNorm(dim)
        self.output_proj = nn.Linear(dim, max_len * latent_dim * options.outputs)
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
        """See `Denoiser.forward`. Returns (B, L, d), the L of z."""
        check_condition(condition, self.class_labels, self.source)
        rows, length = z.shape[:2]
        check_length(length, self.max_len)

        label, noised = None, z
        if self.class_labels is not None and self.class_to_time is not None:
            label = self.class_to_time(self.class_labels(condition, rows))  # (B, T)
        time_vector = self.time_embedding(time, label)  # (B, T) or (1, T)

        if self.init_self_cond is not None:
            z = concat_self_cond(z, x0_self_cond, self_cond_mask, self.init_self_cond)  # (B, L, 2 d)
        if mask is not None:
            z = torch.where(mask[..., None], z, 0)
        z = F.pad(z, (0, 0, 0, self.max_len - length))
        x = self.input_proj(z.flatten(1))[:, None, :]  # (B, 1, D)
        x = x + self.time_to_token(time_vector)[:, None, :]
        if self.length_proj is not None:
            visible = z.new_ones(rows, length) if mask is None else mask.to(z.dtype)
            x = x + self.length_proj(F.pad(visible, (0, self.max_len - length)))[:, None, :]
        if self.source is not None:
            x = x + self.source(condition, rows)

        for block in self.blocks:
            x = block(x, time_vector)
        x = project_in_float32(self.output_proj, self.norm(x))  # (B, 1, L d), or (B, 1, 2 L d) with a learned variance
        out = x.view(rows, self.max_len, x.shape[-1] // self.max_len)[:, :length]  # not -1: rows may be 0
        return add_linear(self.linear, out, noised, time, mask)

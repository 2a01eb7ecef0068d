"""The transformer backbone of the denoisers: blocks of attention and feed-forward branches, with long skips. The blocks
attend to conditions by cross-attention to a memory.

Shapes: B texts, L positions, S memory tokens, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.options import DenoiserOptions
from utils.errors import UserError

DROPOUT = 0.1  # on attention probabilities and inside the feed-forward branches


class ScaleShift(nn.Module):
    """(1 + scale) h + shift, from the time vector; initialized to the identity. Perez et al. 2018, arXiv:1709.07871."""

    def __init__(self, time_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(time_dim, 2 * dim)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.proj(time)[:, None, :].chunk(2, dim=-1)  # (B, 1, D) each
        return h * (1 + scale) + shift


class FeedForward(nn.Module):
    """A pre-norm gated branch (GEGLU, Shazeer 2020, arXiv:2002.05202), optionally modulated by the time vector."""

    def __init__(self, dim: int, time_dim: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 8 * dim)  # value half first, then gate
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(4 * dim, dim)
        self.post_norm = nn.LayerNorm(dim) if time_dim else None
        self.scale_shift = ScaleShift(time_dim, dim) if time_dim else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, L, D), time: (B, time_dim). Returns (B, L, D)."""
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)  # (B, L, 4 D) each
        h = self.down(self.dropout(value * F.gelu(gate)))
        if self.scale_shift is not None and self.post_norm is not None:
            h = self.scale_shift(self.post_norm(h), time)
        return h


class Block(nn.Module):
    """Attention, then attention to a memory if there is one, then feed-forward: residual sums."""

    def __init__(self, dim: int, time_dim: int | None, cross: bool, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, dropout)
        self.cross = Attention(dim, dropout) if cross else None
        self.feed_forward = FeedForward(dim, time_dim, dropout)

    def forward(
        self, x: Tensor, time: Tensor, bias: Tensor | None, memory: Tensor | None, memory_bias: Tensor | None
    ) -> Tensor:
        x = x + self.attention(x, bias)
        if self.cross is not None:
            x = x + self.cross(x, memory_bias, memory)
        return x + self.feed_forward(x, time)


def unet_pairing(depth: int, skips: int) -> list[int]:
    """The source block of each skip, in order of use: first in, last out.

    The last of the first n blocks is joined with the first of the last n: a U-Net, as in Bao et al. 2022,
    arXiv:2209.12152. Where depth = 2 n there is no middle block, so the innermost skip joins the stream with itself.
    """
    if not 0 <= 2 * skips <= depth:
        raise UserError(
            f"--num_dense_connections {skips} pairs the first {skips} blocks with the last {skips}, "
            f"but --tx_depth is {depth}: use at most {depth // 2}"
        )
    return list(range(skips))[::-1]


def ld4lg_pairing(depth: int, skips: int) -> list[int]:
    """The pairing of the published code, which its weights need: only the first skip comes from an earlier block.

    That code stores a state after every block while fewer than n are stored, so each later skip is the stream itself.
    """
    if not 0 <= skips <= max(depth - 1, 0):
        raise UserError(
            f"--num_dense_connections {skips} needs more than {skips} blocks, but --tx_depth is {depth}: "
            f"use at most {max(depth - 1, 0)}"
        )
    stored: list[int] = []
    skip_sources = []
    for block in range(depth):
        if block >= depth - skips:
            skip_sources.append(stored.pop())
        if len(stored) < skips:
            stored.append(block)
    return skip_sources


SKIP_PAIRINGS = {"unet": unet_pairing, "ld4lg": ld4lg_pairing}


class TransformerBackbone(nn.Module):
    """Blocks; before each of the last n, a long skip joins the stream with an earlier block's output (2 D -> D)."""

    def __init__(
        self, dim: int, depth: int, *, time_dim: int | None, cross: bool, dropout: float, skips: int, pairing: str
    ) -> None:
        """time_dim: width of the time vector that modulates the feed-forward branches; None: they are not modulated."""
        super().__init__()
        if depth < 1:
            raise UserError(f"--tx_depth is {depth}: a denoiser needs at least 1 block")
        self.blocks = nn.ModuleList(Block(dim, time_dim, cross, dropout) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(skips))
        self.skip_sources = SKIP_PAIRINGS[pairing](depth, skips)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        bias: Tensor | None = None,
        memory: Tensor | None = None,
        memory_bias: Tensor | None = None,
    ) -> Tensor:
        """x: (B, L, D); time: (B, time_dim); bias: to (B, H, L, L); memory: (B, S, D); memory_bias: to (B, H, L, S)."""
        first_joined = len(self.blocks) - len(self.skips)
        outputs: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if (j := i - first_joined) >= 0:
                x = self.skips[j](torch.cat([x, outputs[self.skip_sources[j]]], dim=-1))
            x = block(x, time, bias, memory, memory_bias)
            outputs.append(x)
        return x


def make_backbone(options: DenoiserOptions, cross: bool) -> TransformerBackbone:
    """The backbone of the flags. cross: its blocks attend to a memory."""
    return TransformerBackbone(
        options.tx_dim,
        options.tx_depth,
        time_dim=4 * options.tx_dim if options.scale_shift else None,
        cross=cross,
        dropout=0.0 if options.disable_dropout else DROPOUT,
        skips=options.num_dense_connections,
        pairing=options.skip_pairing,
    )

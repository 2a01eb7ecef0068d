"""The transformer backbone of the denoisers: blocks of attention and feed-forward branches, with long skips. The blocks
attend to conditions by cross-attention to a memory. TimeEmbedding embeds the noise level, a number in [0, 1]
(diffusion.denoisers.get_time_input).

Shapes: B texts, L positions, S memory tokens, D channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import Attention
from model.dropout import Dropout
from model.options import DenoiserOptions
from utils.errors import UserError

DROPOUT = 0.1  # on attention probabilities and inside the feed-forward branches
TIME_SCALE = 1000.0  # the sinusoids were designed for step numbers 0..1000
MAX_PERIOD = 10000.0


def sinusoids(position: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of `position` at width / 2 frequencies falling geometrically from 1 to 1 / 10000.

    position: (B,), any real. Returns (B, width), in float32 at least. Vaswani et al. 2017, arXiv:1706.03762, 3.5.
    Differs from the paper: the lowest frequency is exactly 1 / 10000 (half - 1 intervals), as in DDPM's code.
    """
    half = width // 2
    position = position.to(torch.promote_types(position.dtype, torch.float32))
    steps = torch.arange(half, device=position.device, dtype=position.dtype)
    frequency = torch.exp(steps * -(math.log(MAX_PERIOD) / (half - 1)))
    phase = position[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Noise level (B,) -> vector (B, 4 * dim), with the activation that all layers on it need."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.up = nn.Linear(dim, 4 * dim)
        self.out = nn.Linear(4 * dim, 4 * dim)

    def forward(self, time: Tensor, extra: Tensor | None = None) -> Tensor:
        """time: (B,) in [0, 1], alpha_bar or index / 1000. extra: (B, 4 * dim), added before the last nonlinearity."""
        # the order of the products matters: near alpha_bar = 1 another one changes the phase by 1e-4 rad
        wave = sinusoids(TIME_SCALE * time, self.dim).to(self.up.weight.dtype)
        embedding = self.out(F.gelu(self.up(wave)))  # (B, 4 * dim)
        return F.gelu(embedding if extra is None else embedding + extra)


def project_in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """The output layer of a network; its last linear layer in the precision of its weights, also under autocast.

    In bfloat16 a prediction of 1 is off by up to 1/256. Where alpha is small, pred_noise divides that by alpha, which
    gives several standard deviations of x0.
    """
    *before, last = layer if isinstance(layer, nn.Sequential) else (layer,)
    for part in before:
        x = part(x)
    x = x.to(last.weight.dtype) if isinstance(last, nn.Linear) else x
    if not (torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)):
        return last(x)
    with torch.autocast(x.device.type, enabled=False):
        return last(x)


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

    def __init__(self, dim: int, time_dim: int | None, dropout: float = 0.0, post_norm: bool = True) -> None:
        """time_dim: width of the time vector; None: no modulation. post_norm: a norm before the modulation."""
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 8 * dim)  # value half first, then gate
        self.dropout = Dropout(dropout)
        self.down = nn.Linear(4 * dim, dim)
        self.post_norm = nn.LayerNorm(dim) if time_dim and post_norm else None
        self.scale_shift = ScaleShift(time_dim, dim) if time_dim else None

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, L, D), time: (B, time_dim). Returns (B, L, D)."""
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)  # (B, L, 4 D) each
        h = self.down(self.dropout(value * F.gelu(gate)))
        if self.post_norm is not None:
            h = self.post_norm(h)
        return h if self.scale_shift is None else self.scale_shift(h, time)


class Block(nn.Module):
    """Attention, then attention to a memory if there is one, then feed-forward: residual sums."""

    def __init__(self, dim: int, time_dim: int | None, cross: bool, dropout: float, post_norm: bool = True) -> None:
        super().__init__()
        self.attention = Attention(dim, dropout)
        self.cross = Attention(dim, dropout) if cross else None
        self.feed_forward = FeedForward(dim, time_dim, dropout, post_norm)

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
        self,
        dim: int,
        depth: int,
        *,
        time_dim: int | None,
        cross: bool,
        dropout: float,
        skips: int,
        pairing: str,
        post_norm: bool = True,
    ) -> None:
        """time_dim: width of the time vector that modulates the feed-forward branches; None: they are not modulated.

        post_norm: a norm before the modulation.
        """
        super().__init__()
        if depth < 1:
            raise UserError(f"--tx_depth is {depth}: a denoiser needs at least 1 block")
        self.blocks = nn.ModuleList(Block(dim, time_dim, cross, dropout, post_norm) for _ in range(depth))
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
    """The backbone of the flags. cross: whether its blocks attend to a memory."""
    return TransformerBackbone(
        options.tx_dim,
        options.tx_depth,
        time_dim=4 * options.tx_dim if options.scale_shift else None,
        cross=cross,
        dropout=0.0 if options.disable_dropout else DROPOUT,
        skips=options.num_dense_connections,
        pairing=options.skip_pairing,
        post_norm=options.scale_shift_norm,
    )

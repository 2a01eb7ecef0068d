"""Embedding of the noise level, a number in [0, 1] (diffusion.denoisers.get_time_input)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

"""A variational bottleneck: each channel of a latent is a normal distribution, whose mean is what diffusion sees.

Kingma & Welling 2014, arXiv:1312.6114. Shapes: B texts, L latents of D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_LOG_VARIANCE = -4.0  # sigma = 0.14: the decoder first learns to read nearly clean latents
LOG_VARIANCE_RANGE = (-20.0, 10.0)  # so that exp neither underflows nor overflows in float32


class VariationalEncoder(nn.Module):
    """An encoder with heads for mean and log-variance; called like the encoder, it returns the mean."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        """dim: D, channels of a latent."""
        super().__init__()
        self.inner = encoder
        self.mean, self.log_variance = nn.Linear(dim, dim), nn.Linear(dim, dim)
        with torch.no_grad():
            nn.init.zeros_(self.log_variance.weight)
            nn.init.constant_(self.log_variance.bias, INITIAL_LOG_VARIANCE)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        return self.mean(self.inner(states, mask))

    def distribution(self, states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, (B, L, D) each."""
        hidden = self.inner(states, mask)
        return self.mean(hidden), self.log_variance(hidden).clamp(*LOG_VARIANCE_RANGE)


def sample(mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
    """mean + sigma eps, all (B, L, D); eps: standard normal."""
    return mean + (log_variance / 2).exp() * eps


def kl_divergence(mean: Tensor, log_variance: Tensor, mask: Tensor | None = None) -> Tensor:
    """KL(N(mean, sigma^2) || N(0, 1)) of the latents of each text, (B,), in nats: a sum over latents and channels.

    1/2 sum (mean^2 + sigma^2 - log sigma^2 - 1): Kingma & Welling 2014, appendix B. mask: (B, L), None for all latents.
    """
    nats = (mean.float() ** 2 + log_variance.float().exp() - log_variance.float() - 1).sum(-1) / 2  # (B, L)
    return (nats if mask is None else nats * mask).sum(1)

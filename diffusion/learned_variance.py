"""The variance of ancestral steps as an output of the network, on discrete chains.

    Sigma = exp(v log beta + (1 - v) log beta_tilde)      between the two variances that are optimal at the extremes

    split_variance(output, D)           a network's output (B, L, 2 D) -> its prediction and v, (B, L, D) each
    interpolate_variance(v, ...)        Sigma
    variational_bound(x0, x0_hat, v, t, schedule, T, mask)
                                        the loss that teaches v, (B,), nats per number
    LearnedVariance                     hands v from the network to the sampler (--posterior_variance learned)

Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15 and 16: L_hybrid = L_simple + 0.001 L_vlb, where no gradient of
L_vlb reaches the prediction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.masking import masked_mean
from diffusion.noise_levels import Schedule, broadcast_level, step_variance

HYBRID_WEIGHT = 0.001  # lambda of eq. 16; L_vlb is a sum over the chain, so its estimate at one step counts T times


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The prediction (B, L, D), and v (B, L, D); None for a network without this output. channels: D.

    The network's number u is v = (u + 1) / 2, as in their code: 0, as at the start of training, is the middle. v is not
    limited to [0, 1].
    """
    if output.shape[-1] == channels:
        return output, None
    prediction, u = output.split(channels, dim=-1)
    return prediction, (u + 1) / 2


def interpolate_variance(v: Tensor, beta: Tensor, beta_tilde: Tensor) -> Tensor:
    """Sigma, shaped like v. beta: variance of z_t given z_s. beta_tilde: that of z_s given z_t and x0, above 0."""
    return torch.exp(v * beta.log() + (1 - v) * beta_tilde.log())


def chain_step(schedule: Schedule, t: Tensor, timesteps: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """beta, beta_tilde, and the factor of x0 in the mean of z_s, (B, 1, 1) each, for steps from t (B,) to t - 1 / T.

    At the first step, to data, z_s is x0, and beta_tilde is that of the second step, as in their code.
    """
    s = (t - 1 / timesteps).clamp(min=0)
    s = torch.where(t * timesteps < 1.5, torch.zeros_like(s), s)  # 1 / T - 1 / T is not always 0
    at_t, at_s = broadcast_level(schedule, t, like), broadcast_level(schedule, s, like)
    beta = step_variance(at_t, at_s)
    kept = at_s.sigma**2 / at_t.sigma**2
    second = torch.full_like(t[:1], 2 / timesteps).clamp(max=1)
    at_2, at_1 = broadcast_level(schedule, second, like), broadcast_level(schedule, second / 2, like)
    smallest = step_variance(at_2, at_1) * at_1.sigma**2 / at_2.sigma**2
    smallest = torch.where(smallest > 0, smallest, beta / 2)  # a chain of one step has no second
    beta_tilde = torch.where(kept > 0, beta * kept, torch.minimum(smallest, beta))
    return beta, beta_tilde, at_s.alpha * beta / at_t.sigma**2


def variational_bound(
    x0: Tensor, x0_hat: Tensor, v: Tensor, t: Tensor, schedule: Schedule, timesteps: int, mask: Tensor | None = None
) -> Tensor:
    """KL(q(z_s | z_t, x0) || p(z_s | z_t)), (B,), in nats per number of the text; -log p(x0 | z_t) at the first step.

    x0, x0_hat, v: (B, L, D); t: (B,) nodes of the chain of T steps. mask: (B, L) bool. Gradients reach v alone. Their
    code counts bits, and rounds x0 to the 256 values of a pixel at the first step; a latent has a density.
    """
    beta, beta_tilde, factor = chain_step(schedule, t, timesteps, x0)
    variance = interpolate_variance(v, beta, beta_tilde)
    error = (factor * (x0 - x0_hat.detach())) ** 2
    kl = 0.5 * (variance.log() - beta_tilde.log() - 1 + (beta_tilde + error) / variance)
    nll = 0.5 * (math.log(2 * math.pi) + variance.log() + error / variance)
    first = (t * timesteps < 1.5).view(-1, 1, 1)
    return masked_mean(torch.where(first, nll, kl), mask)


class LearnedVariance:
    """v of the last call of the network; make_denoise writes it, the sampler reads it."""

    def __init__(self) -> None:
        self.v: Tensor | None = None

    def of(self, z: Tensor) -> Tensor:
        """v (B, L, D) for the rows of z: with classifier-free guidance the first half, which has the condition."""
        if self.v is None:
            raise ValueError("the network has no learned variance: use --posterior_variance large or small")
        return self.v[: len(z)]

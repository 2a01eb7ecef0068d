"""Training losses of the diffusion. Each returns (B,): one number per text; the caller weights and averages.

    level = level_at(schedule, t, x0)
    z_t = diffuse(x0, eps, level)
    prediction = network(z_t, time, x0_prev)
    loss = masked_mean(error(prediction, target(objective, x0, eps, level)), mask)

    masked_mean, diffuse, prediction_loss, diffusion_loss      training loss
    terminal_mean_loss, aimed_at_mean                          where x0 itself is learned: token embeddings

Knows nothing of optimizers, of text, or of how t and eps were drawn. Weights by noise level: diffusion/weighting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.denoisers import Network, time_value
from diffusion.objectives import target
from diffusion.schedules import NoiseLevel, Schedule, level_at

Error = Callable[[Tensor, Tensor], Tensor]

ERRORS: Mapping[str, Error] = {
    "l1": partial(F.l1_loss, reduction="none"),
    "l2": partial(F.mse_loss, reduction="none"),
    "smooth_l1": partial(F.smooth_l1_loss, reduction="none", beta=1.0),
}


def elementwise(loss_type: str) -> Error:
    """(prediction, target) -> error of each element, same shape. ValueError for an unknown name."""
    if loss_type not in ERRORS:
        raise ValueError(f"no loss is called {loss_type!r}: use one of {', '.join(ERRORS)}")
    return ERRORS[loss_type]


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of x (B, L, D) over the positions where mask (B, L) is True, and over D: (B,).

    Short texts weigh as much as long ones. What stands at padding is never read, not even nan. A text without a single
    valid position counts 0. mask None is all True.
    """
    if mask is None:
        return x.flatten(1).mean(1)
    total = x.masked_fill(~mask[..., None], 0).sum((1, 2))
    return total / (mask.sum(1).clamp(min=1) * x.shape[-1])


def diffuse(x0: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """z_t = alpha x0 + sigma eps, (B, L, D)."""
    return level.alpha * x0 + level.sigma * eps


def prediction_loss(
    prediction: Tensor, x0: Tensor, eps: Tensor, level: NoiseLevel, objective: str, loss_type: str, mask: Tensor | None
) -> Tensor:
    """Error of a prediction made at z_t = diffuse(x0, eps, level): (B,). The target matches the objective."""
    wanted = target(objective, x0, eps, level)
    return masked_mean(elementwise(loss_type)(prediction.to(wanted.dtype), wanted), mask)


def diffusion_loss(
    network: Network,
    x0: Tensor,
    mask: Tensor | None,
    schedule: Schedule,
    objective: str,
    loss_type: str,
    t: Tensor,
    eps: Tensor,
    *,
    x0_prev: Tensor | None = None,
    time_input: str = "alpha_bar",
    timesteps: int | None = None,
) -> Tensor:
    """The training loss at given times and noise, (B,). Ho et al. 2020, Algorithm 1, for any objective and schedule.

    network: (z, time, x0_prev) -> prediction; x0_prev is an earlier estimate at the same (z_t, t), without gradient:
    make_denoise(...)(diffuse(...), t, None), projected where samples will be.
    x0, eps: (B, L, D). mask: (B, L) bool or None. t: (B,). time_input, timesteps: as in make_denoise.
    """
    level = level_at(schedule, t, x0)
    z_t = diffuse(x0, eps, level)
    prediction = network(z_t, time_value(schedule, t, time_input, timesteps).to(z_t.dtype), x0_prev)
    return prediction_loss(prediction, x0, eps, level, objective, loss_type, mask)


def terminal_mean_loss(schedule: Schedule, x0: Tensor, mask: Tensor | None) -> Tensor:
    """Mean square of alpha(1) x0, (B,): what of the data is left at t = 1, where sampling assumes nothing is.

    Source: Li et al. 2022, arXiv:2205.14217, eq. 2, its first term. It matters where x0 itself is learned.
    """
    last = level_at(schedule, torch.ones(1, dtype=x0.dtype, device=x0.device), x0)
    return masked_mean((last.alpha * x0) ** 2, mask)


def aimed_at_mean(
    x0: Tensor, eps: Tensor, mean: Tensor, level: NoiseLevel, t: Tensor, timesteps: int
) -> tuple[Tensor, Tensor]:
    """x0 and eps to train towards where x0 ~ N(mean, sigma_0^2): at a chain's first step the mean stands in for x0.

    Both pairs make the same z_t, so only the target changes, whatever the objective: at t = 1 / T the network should
    say the embedding itself. x0, eps, mean: (B, L, D). t: (B,). timesteps: T.
    Source: Li et al. 2022, arXiv:2205.14217, eq. 2, its term |mu_theta(x_1, 1) - Emb(w)|^2.
    """
    first = (t * timesteps < 1.5).view(-1, *(1,) * (x0.dim() - 1))  # (B, 1, 1)
    remaining = eps + level.alpha / level.sigma * (x0 - mean)  # z_t = alpha mean + sigma remaining
    return torch.where(first, mean, x0), torch.where(first, remaining, eps)

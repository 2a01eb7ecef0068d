"""The training losses of diffusion: corrupt, self-condition, predict, compare. Each loss is (B,), one number per text.

    config = LossConfig(schedule, "pred_v", "l2")
    result = denoising_loss(bind, x0, t, eps, config, mask=mask, self_cond=(self_cond_mask, rows))
    result.loss                                    (B,), Ho et al. 2020, arXiv:2006.11239, Algorithm 1

    corrupt(x0, eps, level)                        z_t
    self_condition(denoise, z_t, t, rows)          an estimate of x0 for some rows, zeros for the others, no gradient
    prediction_loss(prediction, x0, eps, ...)      the error of a prediction
    LOSSES, LOSS_TERMS                             elementwise errors by name; additional losses by name

`denoising_loss` is the only training loss of a denoiser: every training step and scripts/check_parity.py call it. The
caller draws t and eps, applies weights (diffusion/weighting) and averages over the batch.
Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion.absorbing import AbsorbingNoise, mask_positions, mask_probability
from diffusion.denoisers import Denoise, get_time_input, make_denoise
from diffusion.learned_variance import split_variance, variational_bound
from diffusion.masking import masked_mean
from diffusion.objectives import resolve_objective, target, to_x0
from diffusion.schedules import NoiseLevel, Schedule, broadcast_level, num_timesteps

LossFn = Callable[[Tensor, Tensor], Tensor]

LOSSES: Mapping[str, LossFn] = {  # --loss_type: (prediction, target) -> error of each element
    "l1": partial(F.l1_loss, reduction="none"),
    "l2": partial(F.mse_loss, reduction="none"),
    "smooth_l1": partial(F.smooth_l1_loss, reduction="none", beta=1.0),
}


def get_loss_fn(loss_type: str) -> LossFn:
    """(prediction, target) -> error of each element, same shape. ValueError for an unknown name."""
    if loss_type not in LOSSES:
        raise ValueError(f"unknown loss type {loss_type!r}: use one of {', '.join(LOSSES)}")
    return LOSSES[loss_type]


def corrupt(x0: Tensor, eps: Tensor, level: NoiseLevel, absorbing: AbsorbingNoise | None = None) -> Tensor:
    """z_t = alpha x0 + sigma eps, (B, L, D).

    With an absorbing state m: z_t = alpha (x0 - m) + sigma eps + m, N(m, I) at alpha = 0; with absorbing.uniform random
    positions are then replaced by m (diffusion/absorbing).
    """
    z_t = level.alpha * x0 + level.sigma * eps
    if absorbing is None:
        return z_t
    z_t = z_t + (1 - level.alpha) * absorbing.shift
    if absorbing.uniform is None:
        return z_t
    probability = mask_probability(level, absorbing.mask_rate)
    return mask_positions(z_t, absorbing.state, probability, absorbing.uniform, absorbing.mask)


@torch.no_grad()
def self_condition(denoise: Denoise, z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
    """Estimates of x0 (B, L, D) at z_t for the given rows, zero for the others. Chen et al. 2022, arXiv:2208.04202.

    denoise: for these rows alone: (k, L, D), (k,), None -> (k, L, D). t: (B,). rows: (k,) int64, on the device of z_t.
    """
    return torch.zeros_like(z_t).index_copy(0, rows, denoise(z_t[rows], t[rows], None))


def prediction_loss(
    prediction: Tensor, x0: Tensor, eps: Tensor, level: NoiseLevel, objective: str, loss_type: str, mask: Tensor | None
) -> Tensor:
    """Error of a prediction made at z_t = corrupt(x0, eps, level): (B,). The target matches the objective."""
    goal = target(objective, x0, eps, level)
    return masked_mean(get_loss_fn(loss_type)(prediction.to(goal.dtype), goal), mask)


class BoundNetwork(Protocol):
    """A denoiser with mask and condition bound."""

    def __call__(
        self, z: Tensor, time: Tensor, x0_self_cond: Tensor | None = None, self_cond_mask: Tensor | None = None, /
    ) -> Tensor:
        """z: (B, L, D). time: (B,). x0_self_cond: (B, L, D), used where self_cond_mask (B,) is True; None: not used."""


Bind = Callable[[Tensor | None], BoundNetwork]  # rows (k,) of the batch -> the network for them; None: for all rows
Wrap = Callable[[Denoise, Tensor], Denoise]  # (denoise, rows (k,)) -> denoise


@dataclass(frozen=True)
class LossConfig:
    """Schedule, objective, error and time input of the training of a denoiser."""

    schedule: Schedule
    objective: str
    loss_type: str = "l2"
    time_input: str = "alpha_bar"  # see diffusion.denoisers.get_time_input
    timesteps: int | None = None  # T of the chain trained on, where the schedule is not that chain


class DenoisingResult(NamedTuple):
    """One evaluation of the training loss. LOSS_TERMS receive it."""

    loss: Tensor  # (B,), unweighted
    x0: Tensor  # (B, L, D)
    x0_hat: Tensor | None  # (B, L, D), the estimate of x0 by the prediction; None unless requested
    t: Tensor  # (B,)
    mask: Tensor | None  # (B, L), the positions that the loss counts
    schedule: Schedule
    v: Tensor | None = None  # (B, L, D), the variance that the network returned (diffusion/learned_variance)


def denoising_loss(
    bind: Bind,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    config: LossConfig,
    *,
    mask: Tensor | None = None,
    self_cond: tuple[Tensor, Tensor] | None = None,
    wrap: Wrap | None = None,
    absorbing: AbsorbingNoise | None = None,
    mean: Tensor | None = None,
    with_x0_hat: bool = False,
    estimate_noise: Tensor | None = None,
) -> DenoisingResult:
    """Corrupt x0, self-condition, predict, compare: the training loss of a denoiser at given times and noise.

    bind: rows -> the network for these rows of the batch, with their mask and condition.
    x0, eps: (B, L, D). t: (B,). mask: (B, L) bool, the positions that the loss counts; None: all of them.
    self_cond: (mask (B,) bool, rows (k,) int64): the network first estimates x0 for `rows`, without gradient; the rows
        of the mask then receive their estimate, the others the learned start. None: no self-conditioning.
    wrap: applied to the denoiser of that estimate, as in sampling: projection, known positions.
    absorbing: noise with an absorbing state.
    mean: (B, L, D), where x0 ~ N(mean, sigma_0^2): the target of a chain's first step (first_step_targets).
    with_x0_hat: also return the estimate of x0, with gradient.
    estimate_noise: (B, L, D), added to the estimates of self-conditioning, times sigma: sampling has worse estimates,
        those of the step before. Nguyen-Cong et al. 2026, arXiv:2604.05551, who perturb them by a noisier time instead.
    """
    schedule, objective, timesteps = config.schedule, config.objective, config.timesteps
    shift = None if absorbing is None else absorbing.shift
    level = broadcast_level(schedule, t, x0)
    z_t = corrupt(x0, eps, level, absorbing)  # (B, L, D)
    if absorbing is not None and absorbing.uniform is not None and resolve_objective(objective) != "x0":
        # replaced positions hold other noise than what was drawn; the target of x0 does not depend on it
        eps = _noise_of(z_t, x0, level, absorbing.shift)

    x0_self_cond = self_cond_mask = None
    if self_cond is not None:
        self_cond_mask, rows = self_cond
        rows_shift = shift if shift is None or len(shift) == 1 else shift[rows]
        denoise = make_denoise(bind(rows), objective, schedule, config.time_input, timesteps, shift=rows_shift)
        x0_self_cond = self_condition(denoise if wrap is None else wrap(denoise, rows), z_t, t, rows)
        if estimate_noise is not None:
            x0_self_cond = x0_self_cond + level.sigma * estimate_noise

    time = get_time_input(schedule, t, config.time_input, timesteps).to(z_t.dtype)
    # under autocast the output may be in half precision
    output = bind(None)(z_t, time, x0_self_cond, self_cond_mask).to(x0.dtype)
    prediction, v = split_variance(output, x0.shape[-1])

    x0_hat = None
    if with_x0_hat:
        z = z_t if shift is None else z_t - (1 - level.alpha) * shift
        x0_hat = to_x0(objective, prediction, z, level)

    x0_target, eps_target = x0, eps
    if mean is not None and (chain_length := num_timesteps(schedule)) is not None:
        x0_target, eps_target = first_step_targets(x0, eps, mean, level, t, chain_length)
    loss = prediction_loss(prediction, x0_target, eps_target, level, objective, config.loss_type, mask)
    return DenoisingResult(loss, x0, x0_hat, t, mask, schedule, v)


def _noise_of(z_t: Tensor, x0: Tensor, level: NoiseLevel, shift: Tensor) -> Tensor:
    """eps (B, L, D) with which corrupt() makes z_t of x0, whatever put it there."""
    sigma = level.sigma.clamp(min=torch.finfo(level.sigma.dtype).tiny)
    return (z_t - (1 - level.alpha) * shift - level.alpha * x0) / sigma


def tT_loss(schedule: Schedule, x0: Tensor, mask: Tensor | None) -> Tensor:
    """Mean square of alpha(1) x0, (B,): the rest of the data at t = 1, where sampling assumes pure noise.

    Source: Li et al. 2022, arXiv:2205.14217, eq. 2, its first term. It has an effect where x0 is learned.
    """
    last = broadcast_level(schedule, torch.ones(1, dtype=x0.dtype, device=x0.device), x0)
    return masked_mean((last.alpha * x0) ** 2, mask)


def first_step_targets(
    x0: Tensor, eps: Tensor, mean: Tensor, level: NoiseLevel, t: Tensor, timesteps: int
) -> tuple[Tensor, Tensor]:
    """x0 and eps of the target where x0 ~ N(mean, sigma_0^2): at a chain's first step the mean replaces x0.

    Both pairs give the same z_t, so only the target changes, for every objective: at t = 1 / T the network learns the
    embedding itself. x0, eps, mean: (B, L, D). t: (B,). timesteps: T.
    Source: Li et al. 2022, arXiv:2205.14217, eq. 2, its term |mu_theta(x_1, 1) - Emb(w)|^2.
    """
    first = (t * timesteps < 1.5).view(-1, *(1,) * (x0.dim() - 1))  # (B, 1, 1)
    sigma = level.sigma.clamp(min=torch.finfo(level.sigma.dtype).tiny)  # a chain has none at t = 0
    remaining = eps + level.alpha / sigma * (x0 - mean)  # z_t = alpha mean + sigma remaining
    return torch.where(first, mean, x0), torch.where(first, remaining, eps)


def learned_variance_loss(result: DenoisingResult) -> Tensor:
    """The variational bound of each text, (B,), which teaches the network the variance of a step of its chain."""
    timesteps = num_timesteps(result.schedule)
    if result.v is None or result.x0_hat is None or timesteps is None:
        raise ValueError("a learned variance needs a network that returns it, its estimates of x0, and a chain")
    return variational_bound(result.x0, result.x0_hat, result.v, result.t, result.schedule, timesteps, result.mask)


class LossTerm(NamedTuple):
    """An additional loss with its weight; a value of LOSS_TERMS."""

    fn: Callable[[DenoisingResult], Tensor]  # -> (B,)
    weight: float  # weight in the total loss; 0: not computed, unless a training step sets another


LOSS_TERMS: dict[str, LossTerm] = {
    "tT_loss": LossTerm(lambda result: tT_loss(result.schedule, result.x0, result.mask), 0.0),
    "variational_bound": LossTerm(learned_variance_loss, 0.0),  # with --learned_variance 0.001 T
}


def term_weights(weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Weight by name of the LOSS_TERMS to compute: the weights of the table that are not 0, and those given here.

    weights: names that are not in LOSS_TERMS are left out: they are of losses of a latent space.
    """
    overrides = {name: weight for name, weight in (weights or {}).items() if name in LOSS_TERMS}
    return {name: term.weight for name, term in LOSS_TERMS.items() if term.weight} | overrides


def loss_terms(result: DenoisingResult, names: Mapping[str, float]) -> dict[str, Tensor]:
    """The LOSS_TERMS (B,) of these names, unweighted."""
    return {name: LOSS_TERMS[name].fn(result) for name in names}


def unbias_bound(terms: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    """The terms (B,), the variational bound times the weight (B,) of its time: it estimates a sum over the whole chain,
    as the loss of the prediction does (Nichol & Dhariwal 2021, section 3.3); the others do not depend on the time.
    """
    return {name: term * weight if name == "variational_bound" else term for name, term in terms.items()}


def weighted_total(denoising: Tensor, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """denoising + sum of weight * term, (B,), in the order of terms; the weight of a name that is absent is 1."""
    for name, term in terms.items():
        denoising = denoising + weights.get(name, 1.0) * term
    return denoising

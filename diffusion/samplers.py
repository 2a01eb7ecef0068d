"""Samplers: from noise at timesteps[0] to data at timesteps[-1].

    make_sampler(name, eta=0.0, variance="large") -> (denoise, schedule, timesteps, z, noise=None, step_hook=None) -> z
    SAMPLERS: name -> sampler    --sampler; options of its own are keyword-only arguments
    nfe(name, steps): calls of denoise

All have the same signature (diffusion/sampler_steps). N steps are N calls of denoise, from
N = 1; 2 N - 1 for Heun.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from diffusion.denoisers import Denoise, saturate
from diffusion.learned_variance import LearnedVariance, interpolate_variance
from diffusion.noise_levels import power, step_variance
from diffusion.sampler_steps import Noise, Sampler, StepHook, finish_step, iterate_steps, renoise
from diffusion.schedules import NoiseLevel, Schedule


@torch.no_grad()
def sample_ddpm(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    step_hook: StepHook | None = None,
    *,
    variance: str = "large",
    learned: LearnedVariance | None = None,
) -> Tensor:
    """Ancestral sampling: Ho et al. 2020, arXiv:2006.11239, Algorithm 2, for steps of any length.

    It computes in the coordinates z / sqrt(alpha^2 + sigma^2), in which every schedule is variance-preserving.

    variance: "large" is the variance of z_t given z_s, their beta_t, exact for x0 ~ N(0, I); "small" is that of the
    posterior of z_s given z_t and x0, exact where x0 is certain (their section 3.2); "learned" is the network's own,
    between the two, of each number of z (diffusion/learned_variance). learned: holds it.
    """
    if variance not in POSTERIOR_VARIANCES:
        raise ValueError(f"unknown posterior variance {variance!r}: use one of {', '.join(POSTERIOR_VARIANCES)}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    x0 = None
    for step in iterate_steps(schedule, timesteps, z):
        x0 = denoise(z, step.t_batch, x0)
        # In the order of the paper and in the precision of z: at the first step 1 / sqrt(a) is in the hundreds and
        # magnifies rounding, so only the same operations reproduce recorded trajectories.
        norm_t, norm_s = power(step.level_t).sqrt(), power(step.level_s).sqrt()  # 1, unless the path is linear
        alpha = (step.level_t.alpha / norm_t).to(dtype)
        alpha_bar, alpha_bar_s = alpha**2, (step.level_s.alpha / norm_s).to(dtype) ** 2
        a = (alpha_bar / alpha_bar_s).clamp(max=1)  # their alpha_t, over the whole step
        sigma = (1 - alpha_bar).sqrt().clamp(min=1e-8)  # alpha_bar may round to 1; then a does too, and z stays
        z = z / norm_t
        eps = (z - alpha * x0) / sigma
        mean = norm_s * ((z - (1 - a) / sigma * eps) / a.sqrt())
        v = learned.of(z) if learned is not None and variance == "learned" else None
        std = norm_s * POSTERIOR_VARIANCES[variance](1 - a, alpha_bar, alpha_bar_s, v).sqrt()
        z = finish_step(step, x0, mean, std, noise, step_hook)
    return z


def _small(beta: Tensor, alpha_bar: Tensor, alpha_bar_s: Tensor, v: Tensor | None) -> Tensor:
    return beta * (1 - alpha_bar_s) / (1 - alpha_bar).clamp(min=1e-16)


def _learned(beta: Tensor, alpha_bar: Tensor, alpha_bar_s: Tensor, v: Tensor | None) -> Tensor:
    if v is None:
        raise ValueError('the variance "learned" needs that of a network: give `learned`')
    tiny = torch.finfo(beta.dtype).tiny  # a step to data has no small variance, and none is used
    return interpolate_variance(v, beta.clamp(min=tiny), _small(beta, alpha_bar, alpha_bar_s, v).clamp(min=tiny))


POSTERIOR_VARIANCES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "large": lambda beta, alpha_bar, alpha_bar_s, v: beta,
    "small": _small,
    "learned": _learned,
}


@torch.no_grad()
def sample_ddim(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    step_hook: StepHook | None = None,
    *,
    eta: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """DDIM: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16. First order.

    eta: 0 is deterministic, 1 is ancestral sampling with the small variance. gamma: re-noising before each step, see
    renoise; then eta is 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(
            f"eta of DDIM is {eta}, but must be in [0, 1]: 0 adds no noise, 1 as much as ancestral sampling"
        )
    x0 = None
    for step in iterate_steps(schedule, timesteps, z):
        step, z = renoise(step, z, schedule, gamma, noise)
        _, _, _, level_t, level_s, t_batch = step
        x0 = denoise(z, t_batch, x0)
        eps = (z - level_t.alpha * x0) / level_t.sigma
        std = eta * step_variance(level_t, level_s).sqrt() * level_s.sigma / level_t.sigma
        mean = level_s.alpha * x0 + (level_s.sigma**2 - std**2).sqrt() * eps
        z = finish_step(step, x0, mean, std, noise, step_hook)
    return z


@torch.no_grad()
def sample_dpmpp_2m(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    step_hook: StepHook | None = None,
) -> Tensor:
    """DPM-Solver++(2M), second-order multistep: Lu et al. 2022, arXiv:2211.01095, Algorithm 2. Deterministic.

    The first step has no history and is of first order; so is a step to t = 0, which is too long in log-SNR to
    extrapolate over.
    """
    x0_prev, h_prev = None, torch.zeros(())
    for step in iterate_steps(schedule, timesteps, z):
        _, _, _, level_t, level_s, t_batch = step
        x0 = denoise(z, t_batch, x0_prev)
        h = half_log_snr_step(level_t, level_s)
        d = extrapolate_x0(x0, x0_prev, h, h_prev)
        mean = level_s.sigma / level_t.sigma * z - level_s.alpha * torch.expm1(-h) * d
        z = finish_step(step, x0, mean, torch.zeros_like(h), noise, step_hook)
        x0_prev, h_prev = x0, h
    return z


@torch.no_grad()
def sample_dpmpp_2m_sde(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    step_hook: StepHook | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M), the stochastic counterpart: Lu et al. 2022, arXiv:2211.01095, section 5.

    A step without history equals a step of DDIM with eta 1, or of ancestral sampling with the small variance.
    """
    x0_prev, h_prev = None, torch.zeros(())
    for step in iterate_steps(schedule, timesteps, z):
        _, _, _, level_t, level_s, t_batch = step
        x0 = denoise(z, t_batch, x0_prev)
        h = half_log_snr_step(level_t, level_s)
        d = extrapolate_x0(x0, x0_prev, h, h_prev)
        mean = level_s.sigma / level_t.sigma * torch.exp(-h) * z - level_s.alpha * torch.expm1(-2 * h) * d
        std = level_s.sigma * (-torch.expm1(-2 * h)).sqrt()
        z = finish_step(step, x0, mean, std, noise, step_hook)
        x0_prev, h_prev = x0, h
    return z


@torch.no_grad()
def sample_heun(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    step_hook: StepHook | None = None,
    *,
    gamma: float = 0.0,
) -> Tensor:
    """Heun's method on the probability-flow ODE: second order without history. Deterministic. Two calls a step.

    gamma: re-noising before each step, see renoise.
    Each step estimates x0 at both ends (at the far end after a step of first order), interpolates linearly in log-SNR
    between the two estimates, and solves the rest of the ODE exactly. The step to t = 0 takes one call.
    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1; as an exponential integrator, Cox & Matthews 2002.
    Differs from the former: they average slopes over sigma / alpha, which is 90 at most on their grid. Ours start from
    alpha = 5e-4, where one step spans a factor of hundreds and that average is far off.
    """
    x0 = None
    for step in iterate_steps(schedule, timesteps, z):
        step, z = renoise(step, z, schedule, gamma, noise)
        _, _, s, level_t, level_s, t_batch = step
        x0 = denoise(z, t_batch, x0)
        h = half_log_snr_step(level_t, level_s)
        mean = level_s.sigma / level_t.sigma * z - level_s.alpha * torch.expm1(-h) * x0
        if s > 0 and h > 0:
            x0_s = denoise(mean, torch.full_like(t_batch, float(s)), x0)
            mean = mean + level_s.alpha * (1 + torch.expm1(-h) / h) * (x0_s - x0)
            x0 = x0_s
        z = finish_step(step, x0, mean, torch.zeros_like(h), noise, step_hook)
    return z


def half_log_snr_step(level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """Length of a step in half the log-SNR, the h of Lu et al. 2022; inf to a level without noise."""
    return (level_s.alpha / level_s.sigma).log() - (level_t.alpha / level_t.sigma).log()


def extrapolate_x0(x0: Tensor, x0_prev: Tensor | None, h: Tensor, h_prev: Tensor) -> Tensor:
    """x0 at the middle of a step, extrapolated linearly from the last two estimates; x0 without a previous estimate."""
    if x0_prev is None or not h_prev > 0:  # a previous step between times with one clamped log-SNR has no length
        return x0
    return x0 + h / (2 * h_prev) * (x0 - x0_prev)


SAMPLERS: Mapping[str, Callable[..., Tensor]] = {
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "dpmpp": sample_dpmpp_2m,
    "dpmpp_sde": sample_dpmpp_2m_sde,
    "heun": sample_heun,
}

TWO_CALLS = ("heun",)  # samplers with two calls of denoise in every step but the last


def sampler_kwargs(name: str) -> set[str]:
    """Names of the arguments that a sampler has beyond the shared signature: its keyword-only ones."""
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def make_sampler(
    name: str,
    *,
    eta: float = 0.0,
    variance: str = "large",
    gamma: float = 0.0,
    learned: LearnedVariance | None = None,
) -> Sampler:
    """A sampler of SAMPLERS with its keywords bound; others are ignored. ValueError for an unknown name.

    It computes in float32 at least: for z in half precision, only denoise receives half precision.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: use one of {', '.join(SAMPLERS)}")
    if eta > 0 and gamma > 0 and name == "ddim":
        raise ValueError(f"eta {eta} and re-noising with gamma {gamma} both add noise to a step: use one of them")
    options = {"eta": eta, "variance": variance, "gamma": gamma, "learned": learned}
    sampler = partial(SAMPLERS[name], **{key: options[key] for key in options if key in sampler_kwargs(name)})
    return partial(_sample_in_full_precision, sampler)


def _sample_in_full_precision(
    sampler: Sampler,
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    step_hook: StepHook | None = None,
) -> Tensor:
    dtype = z.dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return sampler(denoise, schedule, timesteps, z, noise, step_hook)

    def denoise_half(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        return denoise(saturate(z, dtype), t, x0_prev).float()

    return saturate(sampler(denoise_half, schedule, timesteps, z.float(), noise, step_hook), dtype)


def nfe(name: str, steps: int) -> int:
    """Calls of denoise in N steps to t = 0: the NFE of unguided sampling; classifier-free guidance doubles it."""
    return 2 * steps - 1 if name in TWO_CALLS else steps

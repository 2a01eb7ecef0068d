"""Samplers: from noise at timesteps[0] to data at timesteps[-1].

    make_sampler(name, eta=0.0, variance="large") -> (denoise, schedule, timesteps, z, noise=None, correct=None) -> z
    SAMPLERS: name -> sampler, with what is its own by keyword
    network_calls(name, steps): what N steps cost

All share one signature (diffusion/sampler_steps), so they read side by side and any serves in place of another. N steps
are N calls of denoise, from N = 1 up; 2 N - 1 for Heun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.sampler_steps import Noise, Sampler, StepHook, finish_step, iterate_steps, step_variance
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
) -> Tensor:
    """Ancestral sampling: Ho et al. 2020, arXiv:2006.11239, Algorithm 2, for steps of any length. Variance-preserving.

    variance: "large" is that of z_t given z_s, their beta_t, right for x0 ~ N(0, I); "small" that of the posterior of
    z_s given z_t and x0, right where x0 is certain (their section 3.2).
    """
    if variance not in POSTERIOR_VARIANCES:
        raise ValueError(f"no posterior variance is called {variance!r}: use one of {', '.join(POSTERIOR_VARIANCES)}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    x0 = None
    for at in iterate_steps(schedule, timesteps, z):
        x0 = denoise(z, at.times, x0)
        # In the paper's own order and in the precision of z: at the first step 1 / sqrt(a) is in the hundreds and
        # magnifies rounding, so trajectories recorded elsewhere can be met by the same operations only.
        alpha = at.now.alpha.to(dtype)
        alpha_bar, alpha_bar_s = alpha**2, at.then.alpha.to(dtype) ** 2
        a = (alpha_bar / alpha_bar_s).clamp(max=1)  # their alpha_t, over the whole step
        sigma = (1 - alpha_bar).sqrt().clamp(min=1e-8)  # alpha_bar may round to 1; then a does too, and z stays
        eps = (z - alpha * x0) / sigma
        mean = (z - (1 - a) / sigma * eps) / a.sqrt()
        std = POSTERIOR_VARIANCES[variance](1 - a, alpha_bar, alpha_bar_s).sqrt()
        z = finish_step(at, x0, mean, std, noise, step_hook)
    return z


POSTERIOR_VARIANCES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "large": lambda beta, alpha_bar, alpha_bar_s: beta,
    "small": lambda beta, alpha_bar, alpha_bar_s: beta * (1 - alpha_bar_s) / (1 - alpha_bar).clamp(min=1e-16),
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
) -> Tensor:
    """DDIM: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16. First order.

    eta: 0 is deterministic, 1 is ancestral sampling with the small variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta of DDIM is {eta}, outside of [0, 1]: 0 adds no noise, 1 as much as ancestral sampling")
    x0 = None
    for at in iterate_steps(schedule, timesteps, z):
        _, _, _, now, then, times = at
        x0 = denoise(z, times, x0)
        eps = (z - now.alpha * x0) / now.sigma
        std = eta * step_variance(now, then).sqrt() * then.sigma / now.sigma
        mean = then.alpha * x0 + (then.sigma**2 - std**2).sqrt() * eps
        z = finish_step(at, x0, mean, std, noise, step_hook)
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

    The first step has no history and is of first order, as is one to t = 0, whose length in log-SNR would be beyond
    any extrapolation.
    """
    x0_prev, h_prev = None, torch.zeros(())
    for at in iterate_steps(schedule, timesteps, z):
        _, _, _, now, then, times = at
        x0 = denoise(z, times, x0_prev)
        h = half_log_snr_step(now, then)
        d = extrapolate_x0(x0, x0_prev, h, h_prev)
        mean = then.sigma / now.sigma * z - then.alpha * torch.expm1(-h) * d
        z = finish_step(at, x0, mean, torch.zeros_like(h), noise, step_hook)
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

    A step without history is one of DDIM with eta 1, or of ancestral sampling with the small variance.
    """
    x0_prev, h_prev = None, torch.zeros(())
    for at in iterate_steps(schedule, timesteps, z):
        _, _, _, now, then, times = at
        x0 = denoise(z, times, x0_prev)
        h = half_log_snr_step(now, then)
        d = extrapolate_x0(x0, x0_prev, h, h_prev)
        mean = then.sigma / now.sigma * torch.exp(-h) * z - then.alpha * torch.expm1(-2 * h) * d
        std = then.sigma * (-torch.expm1(-2 * h)).sqrt()
        z = finish_step(at, x0, mean, std, noise, step_hook)
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
) -> Tensor:
    """Heun's method on the probability-flow ODE: second order without history. Deterministic. Two calls a step.

    The estimate is taken at both ends of a step, at the far end after a step of first order, and laid in a line over
    log-SNR between them; the rest of the ODE is solved exactly. The step to t = 0 takes one call.
    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1; as an exponential integrator, Cox & Matthews 2002.
    Differs from the former: they average slopes over sigma / alpha, which is 90 at most on their grid. Ours start from
    alpha = 5e-4, where one step spans a factor of hundreds and that average is far off.
    """
    x0 = None
    for at in iterate_steps(schedule, timesteps, z):
        _, _, s, now, then, times = at
        x0 = denoise(z, times, x0)
        h = half_log_snr_step(now, then)
        mean = then.sigma / now.sigma * z - then.alpha * torch.expm1(-h) * x0
        if s > 0 and h > 0:
            x0_then = denoise(mean, torch.full_like(times, float(s)), x0)
            mean = mean + then.alpha * (1 + torch.expm1(-h) / h) * (x0_then - x0)
            x0 = x0_then
        z = finish_step(at, x0, mean, torch.zeros_like(h), noise, step_hook)
    return z


def half_log_snr_step(now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Length of a step in half a log-SNR, the h of Lu et al. 2022; inf to a level without noise."""
    return (then.alpha / then.sigma).log() - (now.alpha / now.sigma).log()


def extrapolate_x0(x0: Tensor, x0_prev: Tensor | None, h: Tensor, h_prev: Tensor) -> Tensor:
    """The estimate expected at the middle of a step, in a line through the last two; x0 itself where there is one."""
    if x0_prev is None or not h_prev > 0:  # no length, no slope: two times whose log-SNR was clamped
        return x0
    return x0 + h / (2 * h_prev) * (x0 - x0_prev)


SAMPLERS: Mapping[str, Callable[..., Tensor]] = {
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "dpmpp": sample_dpmpp_2m,
    "dpmpp_sde": sample_dpmpp_2m_sde,
    "heun": sample_heun,
}

# what each takes beyond the signature
SAMPLER_KWARGS: Mapping[str, tuple[str, ...]] = {"ddpm": ("variance",), "ddim": ("eta",)}


def make_sampler(name: str, *, eta: float = 0.0, variance: str = "large") -> Sampler:
    """A sampler of SAMPLERS with its own choice bound; the others do not concern it. ValueError for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"no sampler is called {name!r}: use one of {', '.join(SAMPLERS)}")
    choices = {"eta": eta, "variance": variance}
    return partial(SAMPLERS[name], **{choice: choices[choice] for choice in SAMPLER_KWARGS.get(name, ())})


def nfe(name: str, steps: int) -> int:
    """Calls of denoise that N steps to t = 0 make, the NFE of an unguided run; classifier-free guidance doubles it."""
    return 2 * steps - 1 if name == "heun" else steps

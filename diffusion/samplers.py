"""Samplers: from noise at timesteps[0] to data at timesteps[-1].

All share one signature, so they read side by side and any serves in place of another:

    (denoise, schedule, timesteps, z, noise=None, correct=None) -> z

denoise: (z (B, L, D), t (B,), x0_prev) -> x0_hat (B, L, D). Conditions, guidance, projection, masks live inside it.
    x0_prev is the estimate of the step before, None at the first.
schedule: t -> NoiseLevel; it may differ from the one trained with.
timesteps: (N + 1,), falling (diffusion/times). They are walked on the CPU in float64, so that no step makes the host
    wait for the device.
z: (B, L, D), drawn at timesteps[0]; its dtype and device are those of the result.
noise: (step, like) -> standard normal like `like`; the only source of randomness, asked only where a transition has
    variance. None draws from torch's global generator.
correct: (z, x0_hat, mean, std, t, s, step) -> z, called after every transition, whose z is mean + std * noise.
    mean (B, L, D); std, t, s: 0-dim on the CPU.

A transition to t = 0 returns x0_hat itself: t = 0 is data by definition, though the continuous schedules hold a trace
of noise there. So N steps are N calls of denoise, from N = 1 up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.schedules import NoiseLevel, Schedule

Noise = Callable[[int, Tensor], Tensor]
Correct = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]


class Sampler(Protocol):
    def __call__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        timesteps: Tensor,
        z: Tensor,
        noise: Noise | None = None,
        correct: Correct | None = None,
    ) -> Tensor: ...


class Transition(NamedTuple):
    """One step, from noise level t down to s. 0-dim tensors on the CPU multiply those of any device without a copy."""

    step: int
    t: Tensor
    s: Tensor
    now: NoiseLevel  # at t
    then: NoiseLevel  # at s
    times: Tensor  # (B,), t for the denoiser, on the device of z


def transitions(schedule: Schedule, timesteps: Tensor, z: Tensor) -> Iterator[Transition]:
    """The steps of a grid. ValueError for a grid that does not fall."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    # rounded to what the denoiser will see, so that both sides speak of the same level; then exact
    timesteps = timesteps.detach().to("cpu", dtype).double()
    if timesteps.dim() != 1 or len(timesteps) < 2 or bool((timesteps.diff() >= 0).any()):
        raise ValueError("timesteps must be two or more falling numbers, one list for the whole batch")
    for step, (t, s) in enumerate(pairwise(timesteps)):
        times = torch.full((len(z),), float(t), dtype=dtype, device=z.device)
        yield Transition(step, t, s, schedule(t), schedule(s), times)


def arrive(
    at: Transition, x0: Tensor, mean: Tensor, std: Tensor, noise: Noise | None, correct: Correct | None
) -> Tensor:
    """The z that a transition ends in: mean + std * noise, or x0 where it reaches t = 0; then corrected."""
    if at.s == 0:
        mean, std = x0, torch.zeros_like(std)
    z = mean
    if std > 0:
        z = mean + std * (torch.randn_like(mean) if noise is None else noise(at.step, mean))
    return z if correct is None else correct(z, x0, mean, std, at.t, at.s, at.step)


def step_variance(now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """Variance of z_t given z_s, s < t: beta_t of a chain. Kingma et al. 2021, arXiv:2107.00630, eq. 22."""
    variance = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    return variance.clamp(min=0)  # two times whose log-SNR was clamped share a level; rounding must not go below


@torch.no_grad()
def sample_ddpm(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    correct: Correct | None = None,
    *,
    variance: str = "large",
) -> Tensor:
    """Ancestral sampling: Ho et al. 2020, arXiv:2006.11239, Algorithm 2, for steps of any length. Variance-preserving.

    variance: "large" is that of z_t given z_s, their beta_t, right for x0 ~ N(0, I); "small" that of the posterior of
    z_s given z_t and x0, right where x0 is certain (their section 3.2).
    """
    if variance not in VARIANCES:
        raise ValueError(f"no posterior variance is called {variance!r}: use one of {', '.join(VARIANCES)}")
    dtype = torch.promote_types(z.dtype, torch.float32)
    x0 = None
    for at in transitions(schedule, timesteps, z):
        x0 = denoise(z, at.times, x0)
        # In the paper's own order and in the precision of z: at the first step 1 / sqrt(a) is in the hundreds and
        # magnifies rounding, so trajectories recorded elsewhere can be met by the same operations only.
        alpha = at.now.alpha.to(dtype)
        alpha_bar, alpha_bar_s = alpha**2, at.then.alpha.to(dtype) ** 2
        a = (alpha_bar / alpha_bar_s).clamp(max=1)  # their alpha_t, over the whole step
        sigma = (1 - alpha_bar).sqrt().clamp(min=1e-8)  # alpha_bar may round to 1; then a does too, and z stays
        eps = (z - alpha * x0) / sigma
        mean = (z - (1 - a) / sigma * eps) / a.sqrt()
        std = VARIANCES[variance](1 - a, alpha_bar, alpha_bar_s).sqrt()
        z = arrive(at, x0, mean, std, noise, correct)
    return z


VARIANCES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
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
    correct: Correct | None = None,
    *,
    eta: float = 0.0,
) -> Tensor:
    """DDIM: Song et al. 2021, arXiv:2010.02502, eq. 12 and 16. First order.

    eta: 0 is deterministic, 1 is ancestral sampling with the small variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta of DDIM is {eta}, outside of [0, 1]: 0 adds no noise, 1 as much as ancestral sampling")
    x0 = None
    for at in transitions(schedule, timesteps, z):
        _, _, _, now, then, times = at
        x0 = denoise(z, times, x0)
        eps = (z - now.alpha * x0) / now.sigma
        std = eta * step_variance(now, then).sqrt() * then.sigma / now.sigma
        mean = then.alpha * x0 + (then.sigma**2 - std**2).sqrt() * eps
        z = arrive(at, x0, mean, std, noise, correct)
    return z


@torch.no_grad()
def sample_dpmpp_2m(
    denoise: Denoise,
    schedule: Schedule,
    timesteps: Tensor,
    z: Tensor,
    noise: Noise | None = None,
    correct: Correct | None = None,
) -> Tensor:
    """DPM-Solver++(2M), second-order multistep: Lu et al. 2022, arXiv:2211.01095, Algorithm 2. Deterministic.

    The first step has no history and is of first order, as is one to t = 0, whose length in log-SNR would be beyond
    any extrapolation.
    """
    x0_prev, h_prev = None, torch.zeros(())
    for at in transitions(schedule, timesteps, z):
        _, _, _, now, then, times = at
        x0 = denoise(z, times, x0_prev)
        h = (then.alpha / then.sigma).log() - (now.alpha / now.sigma).log()  # half a log-SNR
        d = x0
        if x0_prev is not None and h_prev > 0:  # no length, no slope: two times whose log-SNR was clamped
            d = x0 + h / (2 * h_prev) * (x0 - x0_prev)
        mean = then.sigma / now.sigma * z - then.alpha * torch.expm1(-h) * d
        z = arrive(at, x0, mean, torch.zeros_like(h), noise, correct)
        x0_prev, h_prev = x0, h
    return z


SAMPLERS: Mapping[str, Callable[..., Tensor]] = {
    "ddpm": sample_ddpm,
    "ddim": sample_ddim,
    "dpmpp": sample_dpmpp_2m,
}

# what each takes beyond the signature
_CHOICES: Mapping[str, tuple[str, ...]] = {"ddpm": ("variance",), "ddim": ("eta",)}


def make_sampler(name: str, *, eta: float = 0.0, variance: str = "large") -> Sampler:
    """A sampler of SAMPLERS with its own choice bound; the others do not concern it. ValueError for an unknown name."""
    if name not in SAMPLERS:
        raise ValueError(f"no sampler is called {name!r}: use one of {', '.join(SAMPLERS)}")
    choices = {"eta": eta, "variance": variance}
    return partial(SAMPLERS[name], **{choice: choices[choice] for choice in _CHOICES.get(name, ())})

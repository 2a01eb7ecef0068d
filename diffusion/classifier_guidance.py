"""Classifier guidance: the gradient of a classifier on noised latents.

    log_prob: (z (B, L, D), t (B,) or (1,)) -> log p(label | z_t) (B,), in nats, differentiable in z

    classifier_guided(denoise, log_prob, schedule, strength)
        a wrapper: shifts every estimate of x0, one gradient a step
    classifier_guidance_hook(log_prob, schedule, strength=, steps=, fluency=, rate=, langevin=)
        a step hook of samplers: several gradient steps after each step, with a fluency term
    grad_log_prob(log_prob, z, t)
        of log p with respect to z, (B, L, D)

Both increase log p(label | z). The classifier, the label and the positions that count are inside log_prob.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.noise import StepGenerator, copy_like, draw
from diffusion.noise_levels import step_variance
from diffusion.sampler_steps import StepHook
from diffusion.schedules import Schedule, broadcast_level

LogProb = Callable[[Tensor, Tensor], Tensor]


def grad_log_prob(log_prob: LogProb, z: Tensor, t: Tensor) -> Tensor:
    """d log p(label | z_t) / d z of each text, (B, L, D). It also works inside torch.no_grad."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(z, t).sum(), z)
    return gradient


def classifier_guided(denoise: Denoise, log_prob: LogProb, schedule: Schedule, strength: float = 1.0) -> Denoise:
    """x0_hat + strength * sigma^2 / alpha * grad log p(label | z_t): the estimate of x0 given the label.

    With strength 1 and the true classifier it is exactly E[x0 | z_t, label] (Tweedie's formula), so any sampler then
    draws from p(x0 | label); with more than 1 the label has more weight.
    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Algorithm 2, whose eps - sigma * grad gives this x0.
    """

    def denoise_guided(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
        alpha, sigma = broadcast_level(schedule, t, z)
        return denoise(z, t, x0_prev) + strength * sigma**2 / alpha * grad_log_prob(log_prob, z, t)

    return denoise_guided


def classifier_guidance_hook(
    log_prob: LogProb,
    schedule: Schedule,
    *,
    strength: float = 1.0,
    steps: int = 3,
    fluency: float = 1.0,
    rate: float = 0.5,
    langevin: StepGenerator | None = None,
) -> StepHook:
    """After each sampler step to s: gradient ascent, from z, on

        strength * log p(label | z_s) - fluency * |z - mean|^2 / (2 std^2)

    The second term, the fluency term, is log p(z_s | z_t) of the diffusion: it keeps z where the network was trained.
    Its std is that of ancestral sampling, for every sampler; gradient steps are in units of std^2,

        z <- z + rate * (strength * std^2 * grad log p - fluency * (z - mean))

    so the fluency term is stable at every noise level, and many steps converge to
    mean + strength / fluency * std^2 * grad log p. At t = 0, where sampling has ended, there is no gradient step.
    A label with a steep gradient needs a small rate, since long steps overshoot the maximum.

    strength: weight of the label. steps: gradient steps after each sampler step. fluency: weight of the second term; 0
    leaves it out, 1 is the published objective up to a factor. rate: step size, in (0, 1].
    langevin: step -> generator: each gradient step then adds sqrt(2 rate) std noise, so that many of them draw from
        p(z_s | z_t)^fluency p(label | z_s)^strength instead of moving to its maximum.
    Source: Li et al. 2022, arXiv:2205.14217, section 5.1. Differs from it: plain steps in units of std^2 in place of
    Adagrad, whose first step has the same length at every noise level. With a deterministic sampler, mean is its z.
    """
    if steps < 1 or not 0 < rate <= 1 or fluency < 0:
        raise ValueError(
            f"classifier guidance with {steps} steps of size {rate} and fluency weight {fluency}: "
            "use 1 step or more, a size in (0, 1], and a weight of 0 or more"
        )

    def step_hook(z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        if s == 0:
            return z
        level_t, level_s = schedule(t), schedule(s)
        if std.dim() > 0 or std > 0:
            variance = std**2
        else:
            variance = step_variance(level_t, level_s) * (level_s.sigma / level_t.sigma) ** 2
        times = torch.full((1,), float(s), dtype=z.dtype, device=z.device)
        generator = None if langevin is None else langevin(step)
        for _ in range(steps):
            update = strength * variance * grad_log_prob(log_prob, z, times) - fluency * (z - mean)
            z = z + rate * update
            if generator is not None:
                eps = copy_like(draw(torch.randn, z.shape, generator), z)
                z = z + (2 * rate * variance).sqrt() * eps
        return z

    return step_hook

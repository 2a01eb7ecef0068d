"""The learned variance of ancestral steps: its formulas, its loss, and what a sampler makes of it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.absorbing import remask_hook
from diffusion.classifier_guidance import classifier_guidance_hook
from diffusion.denoisers import make_denoise
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.guidance import classifier_free_guided
from diffusion.importance_sampling import sample_fixstep
from diffusion.learned_variance import (
    LearnedVariance,
    chain_step,
    interpolate_variance,
    split_variance,
    variational_bound,
)
from diffusion.loss import LOSS_TERMS, LossConfig, denoising_loss, unbias_bound
from diffusion.sampler_steps import compose_hooks
from diffusion.samplers import make_sampler, sample_ddpm
from diffusion.schedules import make_continuous_schedule
from diffusion.timesteps import make_grid, respaced_timesteps

T = 25
CHAIN = make_discrete_schedule("linear", T)
ROWS = (torch.arange(T, dtype=torch.float64) + 1) / T  # all nodes


def tensors(n: int, *shape: int, seed: int = 0):
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def betas() -> torch.Tensor:
    return torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * 1000 / T


def test_the_output_is_split_and_zero_is_the_middle():
    prediction, v = split_variance(torch.cat([torch.ones(2, 3, 4), torch.zeros(2, 3, 4)], -1), 4)
    assert bool((prediction == 1).all()) and bool((v == 0.5).all())
    assert split_variance(torch.ones(2, 3, 4), 4)[1] is None


def test_the_variance_lies_between_both_on_a_logarithmic_scale():
    low, high = torch.tensor(0.01), torch.tensor(0.09)
    found = interpolate_variance(torch.tensor([0.0, 0.5, 1.0]), high, low)
    torch.testing.assert_close(found, torch.tensor([0.01, 0.03, 0.09]))


def test_steps_of_a_chain_are_those_of_its_betas():
    beta, beta_tilde, factor = (x.flatten() for x in chain_step(CHAIN, ROWS, T, torch.zeros(T, 1, 1).double()))
    alpha_bar = (1 - betas()).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    torch.testing.assert_close(beta, betas())
    torch.testing.assert_close(factor, before.sqrt() * betas() / (1 - alpha_bar))
    expected = betas() * (1 - before) / (1 - alpha_bar)
    torch.testing.assert_close(beta_tilde[1:], expected[1:])
    assert float(beta_tilde[0]) == pytest.approx(min(float(expected[1]), float(beta[0]))), (
        "the first has that of the second"
    )


@pytest.mark.parametrize("i", [1, 5, 24])
def test_the_bound_is_the_divergence_of_both_posteriors(i):
    x0, x0_hat, eps, v = tensors(4, 3, 2, 5)
    v = v.sigmoid()
    t = ROWS[i].expand(3)
    alpha_bar = (1 - betas()).cumprod(0)
    beta, bar, bar_s = betas()[i], alpha_bar[i], alpha_bar[i - 1]
    z = bar.sqrt() * x0 + (1 - bar).sqrt() * eps

    def mean(clean):  # Ho et al. 2020, eq. 7
        return bar_s.sqrt() * beta / (1 - bar) * clean + (1 - beta).sqrt() * (1 - bar_s) / (1 - bar) * z

    beta_tilde = beta * (1 - bar_s) / (1 - bar)
    sigma = torch.exp(v * beta.log() + (1 - v) * beta_tilde.log()).sqrt()
    true = Normal(mean(x0), beta_tilde.sqrt().expand_as(x0))
    expected = kl_divergence(true, Normal(mean(x0_hat), sigma)).mean((1, 2))
    torch.testing.assert_close(variational_bound(x0, x0_hat, v, t, CHAIN, T), expected, atol=1e-9, rtol=1e-6)


def test_the_first_step_is_the_likelihood_of_the_data():
    x0, x0_hat, v = tensors(3, 2, 2, 5)
    t = ROWS[:1].expand(2)
    beta, beta_tilde, factor = chain_step(CHAIN, t, T, x0)
    assert factor.flatten().tolist() == pytest.approx([1.0, 1.0])
    sigma = interpolate_variance(v, beta, beta_tilde).sqrt()
    expected = -Normal(x0_hat, sigma).log_prob(x0).mean((1, 2))
    torch.testing.assert_close(variational_bound(x0, x0_hat, v, t, CHAIN, T), expected)


def test_only_the_variance_learns_from_the_bound_and_padding_does_not_count():
    x0, x0_hat, v = tensors(3, 2, 3, 5)
    x0_hat.requires_grad_(), v.requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    t = torch.tensor([0.5, 0.05], dtype=torch.float64)
    bound = variational_bound(x0, x0_hat, v, t, CHAIN, T, mask)
    bound.sum().backward()
    assert x0_hat.grad is None and bool((v.grad[mask] != 0).all()) and bool((v.grad[~mask] == 0).all())


def best_v(std: float, i: int, chain=CHAIN) -> tuple[float, float]:
    """v of the true variance of z_s given z_t for x0 ~ N(0, std^2), and that variance."""
    t = torch.tensor([(i + 1) / T], dtype=torch.float64)
    level = chain(t)
    left = std**2 * level.sigma**2 / (level.alpha**2 * std**2 + level.sigma**2)  # variance of x0 given z_t
    beta, beta_tilde, factor = (x.flatten() for x in chain_step(chain, t, T, torch.zeros(1, 1, 1).double()))
    variance = beta_tilde + factor**2 * left
    return float((variance.log() - beta_tilde.log()) / (beta.log() - beta_tilde.log())), float(variance)


@pytest.mark.parametrize("i", [2, 8, 20])
@pytest.mark.parametrize("std", [0.3, 0.9])
def test_the_bound_is_smallest_at_the_true_variance(i, std):
    """Which for Gaussian data is that of z_s given z_t."""
    v, variance = best_v(std, i)
    t, s = (CHAIN(torch.tensor(x / T, dtype=torch.float64)) for x in (i + 1, i))
    total_t, total_s = t.alpha**2 * std**2 + t.sigma**2, s.alpha**2 * std**2 + s.sigma**2
    covariance = t.alpha / s.alpha * total_s
    assert variance == pytest.approx(float(total_s - covariance**2 / total_t)) and 0 < v < 1
    x0, eps = tensors(2, 20_000, 1, 1, seed=3)
    x0 = std * x0
    level = CHAIN(torch.tensor((i + 1) / T, dtype=torch.float64))
    z = level.alpha * x0 + level.sigma * eps
    x0_hat = level.alpha * std**2 / total_t * z
    time = torch.full((len(x0),), (i + 1) / T, dtype=torch.float64)

    def bound(v):
        return float(variational_bound(x0, x0_hat, torch.full_like(x0, v), time, CHAIN, T).mean())

    assert bound(v) < min(bound(v - 0.2), bound(v + 0.2))


def network_of(std: float):
    """The ideal prediction of x0 ~ N(0, std^2), and the ideal variance, as a network of time alpha_bar returns them."""

    def network(z, time, x0_prev):
        step = int((CHAIN(ROWS).alpha ** 2 - time.double()).abs().argmin())
        level = CHAIN(ROWS[step])
        x0 = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2) * z
        u = 2 * best_v(std, step)[0] - 1
        return torch.cat([x0, torch.full_like(x0, u)], -1)

    return network


def test_a_few_steps_with_the_true_variance_have_the_spread_of_the_data():
    """The fixed variances are wrong in opposite directions, the learned one is right."""
    std, spread = 0.7, {}
    z, noises = tensors(1, 40_000, 1, 1)[0], tensors(T, 40_000, 1, 1, seed=1)
    for variance in ("small", "learned", "large"):
        learned = LearnedVariance()
        denoise = make_denoise(network_of(std), "x0", CHAIN, variance=learned)
        sampler = make_sampler("ddpm", variance=variance, learned=learned)
        times = make_grid("uniform", CHAIN, T)
        record: list[torch.Tensor] = []

        def keep(z, *rest, record=record):
            record.append(z)
            return z

        sampler(denoise, CHAIN, times, z, lambda step, like: noises[step], keep)
        spread[variance] = float(record[-2].std())  # before the step to t = 0, which returns an estimate
    level = CHAIN(ROWS[0])
    true = math.sqrt(float(level.alpha) ** 2 * std**2 + float(level.sigma) ** 2)
    assert spread["learned"] == pytest.approx(true, rel=0.01)
    assert spread["small"] < true * 0.99 and spread["large"] > true * 1.01


@pytest.mark.parametrize(("v", "fixed"), [(1.0, "large"), (0.0, "small")])
def test_both_ends_are_the_fixed_variances(v, fixed, gaussian, noise_at_start, recorded_noise):
    learned = LearnedVariance()
    learned.v = torch.full_like(noise_at_start, v)
    times = respaced_timesteps(T, [24, 14, 6, 0])  # steps of any length
    arguments = (gaussian.denoise(CHAIN), CHAIN, times, noise_at_start, recorded_noise)
    found = sample_ddpm(*arguments, variance="learned", learned=learned)
    torch.testing.assert_close(found, sample_ddpm(*arguments, variance=fixed), atol=1e-9, rtol=1e-9)


def test_guided_sampling_has_the_variance_of_the_condition():
    learned = LearnedVariance()

    def both(z, time, x0_prev):
        half = len(z) // 2
        v = torch.cat([torch.full_like(z[:half], 1.0), torch.full_like(z[half:], -1.0)])
        return torch.cat([0.1 * z, v], -1)

    denoise = classifier_free_guided(make_denoise(both, "x0", CHAIN, variance=learned), 2.0)
    denoise(torch.randn(3, 2, 4), torch.ones(1), None)
    assert learned.of(torch.zeros(3, 2, 4)).unique().tolist() == [1.0]


def test_step_hooks_receive_the_variance_of_each_number():
    learned = LearnedVariance()
    z = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    network = lambda z, time, x0_prev: torch.cat([0.1 * z, torch.tanh(z)], -1)  # noqa: E731
    hooks = compose_hooks(
        classifier_guidance_hook(lambda z, t: -z.square().sum((1, 2)), CHAIN),
        remask_hook(torch.zeros(4), 0.5, lambda step: torch.Generator().manual_seed(step)),
    )
    sampler = make_sampler("ddpm", variance="learned", learned=learned)
    denoise = make_denoise(network, "x0", CHAIN, variance=learned)
    out = sampler(denoise, CHAIN, make_grid("uniform", CHAIN, 5), z, step_hook=hooks)
    assert out.shape == z.shape and bool(out.isfinite().all())


def test_the_training_loss_of_the_prediction_is_that_without_a_variance():
    x0, eps, u = tensors(3, 4, 2, 5)
    t = ROWS[[0, 3, 10, 19]]

    def bind(rows, wide):
        def network(z, time, x0_self_cond=None, self_cond_mask=None):
            prediction = torch.tanh(z)
            return torch.cat([prediction, u], -1) if wide else prediction

        return network

    config = LossConfig(CHAIN, "pred_x0")
    plain = denoising_loss(partial(bind, wide=False), x0, t, eps, config)
    result = denoising_loss(partial(bind, wide=True), x0, t, eps, config, with_x0_hat=True)
    assert torch.equal(result.loss, plain.loss) and plain.v is None
    bound = LOSS_TERMS["variational_bound"].fn(result)
    torch.testing.assert_close(bound, variational_bound(x0, result.x0_hat, (u + 1) / 2, t, CHAIN, T))
    with pytest.raises(ValueError, match="learned variance"):
        LOSS_TERMS["variational_bound"].fn(plain)


@pytest.mark.parametrize("name", ["linear", "cosine", "sqrt"])
@pytest.mark.parametrize("timesteps", [1, 2, 1000])
def test_the_bound_is_finite_on_every_chain_in_float32(name, timesteps):
    chain = make_discrete_schedule(name, timesteps)
    t = (torch.arange(timesteps) + 1) / timesteps
    x0, x0_hat, v = torch.randn(3, timesteps, 1, 2, generator=torch.Generator().manual_seed(0))
    assert bool(variational_bound(x0, x0_hat, v, t, chain, timesteps).isfinite().all())


def test_a_network_without_a_variance_is_an_error():
    learned = LearnedVariance()
    cosine = make_continuous_schedule("cosine")
    denoise = make_denoise(lambda z, t, x0_prev: z, "x0", cosine, variance=learned)
    sampler = make_sampler("ddpm", variance="learned", learned=learned)
    with pytest.raises(ValueError, match="no learned variance"):
        sampler(denoise, cosine, make_grid("uniform", cosine, 3), torch.randn(2, 1, 3))
    with pytest.raises(ValueError, match="give `learned`"):
        make_sampler("ddpm", variance="learned")(denoise, cosine, make_grid("uniform", cosine, 3), torch.randn(2, 1, 3))


def test_the_bound_is_that_of_uniform_times_whichever_times_are_drawn():
    """Nichol & Dhariwal 2021, section 3.3: importance sampling changes the variance of L_vlb, not its mean."""
    chain, timesteps, n = make_discrete_schedule("linear", 20), 20, 40_000
    values = torch.randn(3, 1, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bound(t):
        x0, x0_hat, v = (value.expand(len(t), -1, -1) for value in values)
        return variational_bound(x0, x0_hat, v, t, chain, timesteps)

    t, weight = sample_fixstep(n, torch.Generator().manual_seed(1), timesteps=timesteps)
    assert weight.std() > 0.05, "these times are not uniform"
    terms = unbias_bound({"variational_bound": bound(t.double()), "tT_loss": torch.ones(n)}, weight.double())
    uniform = bound((torch.arange(timesteps, dtype=torch.float64) + 1) / timesteps).mean()
    assert abs(bound(t.double()).mean() / uniform - 1) > 0.05
    torch.testing.assert_close(terms["variational_bound"].mean(), uniform, rtol=0.03, atol=0)
    assert torch.equal(terms["tT_loss"], torch.ones(n))

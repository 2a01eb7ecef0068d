from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from diffusion.denoisers import make_denoise
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.noise_levels import from_log_snr, log_snr, power, step_variance
from diffusion.samplers import (
    make_sampler,
    nfe,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_heun,
)
from diffusion.schedules import CONTINUOUS_SCHEDULES, make_continuous_schedule
from diffusion.timesteps import linear_grid, uniform

COSINE = make_continuous_schedule("cosine")
EVERY = {
    "ddpm large": sample_ddpm,
    "ddpm small": partial(sample_ddpm, variance="small"),
    "ddim": sample_ddim,
    "ddim 0.5": partial(sample_ddim, eta=0.5),
    "ddim 1": partial(sample_ddim, eta=1.0),
    "dpmpp": sample_dpmpp_2m,
    "dpmpp_sde": sample_dpmpp_2m_sde,
    "heun": sample_heun,
}
DETERMINISTIC = (sample_ddim, sample_dpmpp_2m, sample_heun)
MULTISTEP = (sample_dpmpp_2m, sample_dpmpp_2m_sde)
SCHEDULES = [make_continuous_schedule(name, scale) for name in CONTINUOUS_SCHEDULES for scale in (0.5, 4.0)] + [
    make_discrete_schedule("linear", 20),
    make_discrete_schedule("cosine", 5000),
    make_discrete_schedule("warmup-decay", 20),
]
every_sampler = pytest.mark.parametrize("sampler", EVERY.values(), ids=EVERY)


@every_sampler
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_number_of_calls_and_the_last_estimate_is_the_sample(sampler, schedule, steps, gaussian, noise_at_start):
    estimates, shown = [], []
    best = gaussian.denoise(schedule)

    def denoise(z, t, x0_prev):
        assert t.shape == (1,) and t.dtype == z.dtype
        shown.append(x0_prev)
        estimates.append(best(z, t, x0_prev))
        return estimates[-1]

    out = sampler(denoise, schedule, uniform(schedule, steps), noise_at_start)
    assert len(estimates) == nfe("heun" if sampler is sample_heun else "dpmpp", steps)
    assert out.isfinite().all() and torch.equal(out, estimates[-1])
    assert shown[0] is None and all(a is b for a, b in zip(shown[1:], estimates[:-1], strict=True))


@every_sampler
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_thousands_of_steps_are_finite_where_levels_coincide(sampler, scale):
    """The log-SNR clamp makes the first and last times of a fine grid equally noisy, in float32 some more."""
    schedule = make_continuous_schedule("cosine", scale)
    z = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    denoise = make_denoise(lambda z, time, x0_prev: 0.1 * z, "v", schedule)
    times = linear_grid(5000)
    for part in (times[:30], times[-30:]):
        assert sampler(denoise, schedule, part, z).isfinite().all()


@every_sampler
def test_the_linear_path_has_the_samples_of_its_variance_preserving_twin(
    sampler, gaussian, noise_at_start, recorded_noise
):
    """Levels of equal log-SNR differ only in the length of z, so every sampler takes both to the same x0."""
    flow = make_continuous_schedule("rectified_flow", 2.0)
    twin = lambda t: from_log_snr(log_snr(flow(t)))  # noqa: E731
    start = noise_at_start * power(flow(torch.ones((), dtype=torch.float64))).sqrt()
    times = linear_grid(12)
    expected = sampler(gaussian.denoise(twin), twin, times, noise_at_start, recorded_noise)
    found = sampler(gaussian.denoise(flow), flow, times, start, recorded_noise)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@every_sampler
def test_samples_of_gaussian_data_have_its_moments(sampler, gaussian):
    z = torch.randn(4000, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    out = sampler(gaussian.denoise(COSINE), COSINE, linear_grid(100), z)
    torch.testing.assert_close(out.mean((0, 1)), gaussian.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(out.std((0, 1)), gaussian.std, atol=0.02, rtol=0.1)


@pytest.mark.parametrize(
    "schedule", [COSINE, make_continuous_schedule("sigmoid", 0.5), make_discrete_schedule("cosine", 50)], ids=repr
)
def test_ddim_with_eta_one_is_ddpm_with_the_small_variance(schedule, gaussian, noise_at_start, recorded_noise):
    arguments = (gaussian.denoise(schedule), schedule, uniform(schedule, 12), noise_at_start, recorded_noise)
    torch.testing.assert_close(
        sample_ddim(*arguments, eta=1.0), sample_ddpm(*arguments, variance="small"), atol=1e-9, rtol=1e-9
    )
    assert not torch.allclose(sample_ddpm(*arguments, variance="small"), sample_ddpm(*arguments, variance="large"))


def moments(sampler, gaussian, z):
    """(mean, std) of every transition but the last, and where it led from and to."""
    seen = []

    def step_hook(z, x0_hat, mean, std, t, s, step):
        seen.append((mean, std, t, s))
        return mean

    times = linear_grid(7)
    sampler(gaussian.denoise(COSINE), COSINE, times, z, step_hook=step_hook)
    assert [float(t) for _, _, t, _ in seen] == pytest.approx(times[:-1].tolist())
    assert float(seen[-1][1]) == 0, "the transition to t = 0 has no variance"
    return seen[:-1]


def test_the_large_variance_is_exact_for_unit_gaussian_data(gaussian, noise_at_start):
    """Then every marginal is N(0, 1): mean keep * z, variance 1 - keep^2, for steps of any length."""
    gaussian.mean, gaussian.std = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    z = noise_at_start
    for mean, std, t, s in moments(sample_ddpm, gaussian, z):
        keep = COSINE(t).alpha / COSINE(s).alpha
        torch.testing.assert_close(mean, keep * z)
        torch.testing.assert_close(std**2, 1 - keep**2)
        z = mean


def test_the_small_variance_is_exact_for_a_single_point(gaussian, noise_at_start):
    """Then z_s is N(alpha_s x0, sigma_s^2): what the mean keeps of sigma_t and the step's own variance make sigma_s."""
    gaussian.std = torch.zeros(4, dtype=torch.float64)
    z = noise_at_start
    for mean, std, t, s in moments(partial(sample_ddpm, variance="small"), gaussian, z):
        level_t, level_s = COSINE(t), COSINE(s)
        kept = (mean - level_s.alpha * gaussian.mean) / (z - level_t.alpha * gaussian.mean)
        torch.testing.assert_close(kept, torch.full_like(kept, float(kept.flatten()[0])))
        torch.testing.assert_close((kept.flatten()[0] * level_t.sigma) ** 2 + std**2, level_s.sigma**2)
        z = mean


def test_step_variance_is_beta_of_a_chain():
    chain = make_discrete_schedule("linear", 50)
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.48, dtype=torch.float64)
    beta = torch.linspace(20 * 1e-4, 20 * 0.02, 50, dtype=torch.float64)[24]
    torch.testing.assert_close(step_variance(chain(t), chain(s)), beta)


def test_ddpm_is_algorithm_2_of_the_paper(noise_at_start, recorded_noise):
    """Against the paper's own line with betas, one step of the chain at a time."""
    chain = make_discrete_schedule("linear", 30)
    betas = torch.linspace(1000 / 30 * 1e-4, 1000 / 30 * 0.02, 30, dtype=torch.float64)
    alphas_bar = torch.cumprod(1 - betas, 0)
    eps = 0.3 * noise_at_start.flip(0)
    x = noise_at_start
    for step, i in enumerate(range(29, 0, -1)):
        x = (x - betas[i] / (1 - alphas_bar[i]).sqrt() * eps) / (1 - betas[i]).sqrt()
        x = x + betas[i].sqrt() * recorded_noise(step, x)
    x = (x - betas[0] / (1 - alphas_bar[0]).sqrt() * eps) / (1 - betas[0]).sqrt()
    ours = sample_ddpm(
        make_denoise(lambda z, time, x0_prev: eps, "pred_noise", chain),
        chain,
        uniform(chain, 30),
        noise_at_start,
        recorded_noise,
    )
    torch.testing.assert_close(ours, x)


@every_sampler
def test_noise_is_drawn_only_for_steps_with_variance(sampler, gaussian, noise_at_start, recorded_noise):
    asked = []

    def noise(step, like):
        asked.append(step)
        return recorded_noise(step, like)

    before = torch.get_rng_state()
    sampler(gaussian.denoise(COSINE), COSINE, linear_grid(5), noise_at_start, noise)
    assert asked == ([] if sampler in DETERMINISTIC else [0, 1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before), "nothing else is drawn"


@every_sampler
def test_the_step_hook_runs_after_every_step_and_replaces_z(sampler, gaussian, noise_at_start):
    called = []

    def step_hook(z, x0_hat, mean, std, t, s, step):
        called.append((step, float(t), float(s)))
        assert z.shape == x0_hat.shape == mean.shape and std.dim() == 0
        return torch.full_like(z, step)

    out = sampler(gaussian.denoise(COSINE), COSINE, linear_grid(4), noise_at_start, step_hook=step_hook)
    assert called == [(0, 1.0, 0.75), (1, 0.75, 0.5), (2, 0.5, 0.25), (3, 0.25, 0.0)]
    assert (out == 3).all()


@every_sampler
def test_a_grid_may_stop_before_zero(sampler, gaussian, noise_at_start, recorded_noise):
    """Stopping halfway and going on is the same as not stopping, for a solver without history."""
    denoise, times = gaussian.denoise(COSINE), linear_grid(6)
    half = sampler(denoise, COSINE, times[:4], noise_at_start, recorded_noise)
    whole = sampler(denoise, COSINE, times[3:], half, lambda step, like: recorded_noise(step + 3, like))
    assert half.isfinite().all()
    if sampler not in MULTISTEP:
        torch.testing.assert_close(whole, sampler(denoise, COSINE, times, noise_at_start, recorded_noise))


@every_sampler
def test_float32_follows_float64(sampler, gaussian, noise_at_start, recorded_noise):
    def noise(step, like):
        return recorded_noise(step, like.double()).to(like.dtype)

    exact = sampler(gaussian.denoise(COSINE), COSINE, linear_grid(20), noise_at_start, noise)
    gaussian.mean, gaussian.std = gaussian.mean.float(), gaussian.std.float()
    single = sampler(gaussian.denoise(COSINE), COSINE, linear_grid(20), noise_at_start.float(), noise)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, atol=1e-3, rtol=0)


@every_sampler
def test_samples_have_no_gradient(sampler, gaussian, noise_at_start):
    z = noise_at_start.requires_grad_()
    assert not sampler(gaussian.denoise(COSINE), COSINE, linear_grid(2), z).requires_grad


@pytest.mark.parametrize("schedule", [COSINE, make_discrete_schedule("sqrt", 50)], ids=repr)
def test_the_stochastic_solver_without_history_is_ancestral_sampling(
    schedule, gaussian, noise_at_start, recorded_noise
):
    denoise, times = gaussian.denoise(schedule), uniform(schedule, 10)
    for pair in (times[:2], times[4:6]):
        arguments = (denoise, schedule, pair, noise_at_start, recorded_noise)
        torch.testing.assert_close(
            sample_dpmpp_2m_sde(*arguments), sample_ddpm(*arguments, variance="small"), atol=1e-9, rtol=1e-9
        )


def test_make_sampler_passes_each_sampler_its_own_keywords(gaussian, noise_at_start, recorded_noise):
    arguments = (gaussian.denoise(COSINE), COSINE, linear_grid(5), noise_at_start, recorded_noise)
    small, half = make_sampler("ddpm", eta=0.5, variance="small"), make_sampler("ddim", eta=0.5, variance="small")
    assert torch.equal(small(*arguments), sample_ddpm(*arguments, variance="small"))
    assert torch.equal(half(*arguments), sample_ddim(*arguments, eta=0.5))
    assert torch.equal(make_sampler("dpmpp", eta=0.5)(*arguments), sample_dpmpp_2m(*arguments))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: make_sampler("euler"), "euler"),
        (lambda run: run(sample_ddpm, linear_grid(3), variance="medium"), "medium"),
        (lambda run: run(sample_ddim, linear_grid(3), eta=1.5), "eta"),
        (lambda run: run(sample_ddim, linear_grid(3), eta=math.nan), "eta"),
        (lambda run: run(sample_dpmpp_2m, linear_grid(3).flip(0)), "falling"),
        (lambda run: run(sample_ddim, linear_grid(3)[:1]), "two or more"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(make, message, gaussian, noise_at_start):
    def run(sampler, times, **choice):
        sampler(gaussian.denoise(COSINE), COSINE, times, noise_at_start, **choice)

    with pytest.raises(ValueError, match=message) as error:
        make(run)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_sampler
@pytest.mark.parametrize("schedule", [COSINE, make_discrete_schedule("linear", 100)], ids=repr)
def test_no_step_makes_the_host_wait_for_the_gpu(sampler, schedule):
    z = torch.randn(2, 3, 4, device="cuda")
    denoise = make_denoise(lambda z, time, x0_prev: 0.1 * z * time[:, None, None], "v", schedule)
    sampler(denoise, schedule, uniform(schedule, 3), z)  # the chain copies its nodes once
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler(denoise, schedule, uniform(schedule, 10), z)
    finally:
        torch.cuda.set_sync_debug_mode("default")

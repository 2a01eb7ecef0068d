"""Re-noising before each step of a deterministic sampler."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.sampler_steps import iterate_steps, renoise
from diffusion.samplers import make_sampler, sample_ddim, sample_heun
from diffusion.schedules import make_continuous_schedule
from diffusion.timesteps import linear_grid

COSINE, FLOW = make_continuous_schedule("cosine"), make_continuous_schedule("rectified_flow")
both = pytest.mark.parametrize("sampler", [sample_ddim, sample_heun])


@pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["cosine", "rectified_flow"])
def test_z_has_the_noise_of_the_time_to_which_it_goes_back(schedule):
    """x0 fixed, so what varies is noise: its mean and standard deviation are alpha' x0 and sigma'."""
    g = torch.Generator().manual_seed(0)
    x0, gamma = 0.8, 1.5
    z = torch.zeros(200_000, 1, 1, dtype=torch.float64)
    for step in list(iterate_steps(schedule, linear_grid(8), z))[1:]:
        z = step.level_t.alpha * x0 + step.level_t.sigma * torch.randn(z.shape, generator=g, dtype=z.dtype)
        noise = lambda i, like: torch.randn(like.shape, generator=g, dtype=like.dtype)  # noqa: E731
        moved, back = renoise(step, z, schedule, gamma, noise)
        h = float(step.t - step.s)
        assert 1 - float(moved.t) == pytest.approx(
            (1 - gamma * h) * (1 - float(step.t))
        )  # ELF: t_back = (1 - gamma h) t
        torch.testing.assert_close(moved.level_t, schedule(moved.t))
        assert float(moved.t_batch) == pytest.approx(float(moved.t)) and moved.s == step.s
        assert float(back.mean()) == pytest.approx(float(moved.level_t.alpha) * x0, abs=0.01)
        assert float(back.std()) == pytest.approx(float(moved.level_t.sigma), rel=0.01)


def test_the_first_step_and_gamma_zero_change_nothing():
    z = torch.randn(2, 1, 3)
    first, second, *_ = iterate_steps(COSINE, linear_grid(4), z)
    for step, gamma in ((first, 1.5), (second, 0.0)):
        moved, same = renoise(step, z, COSINE, gamma, None)
        assert moved is step and same is z


def test_going_back_ends_at_pure_noise():
    z = torch.randn(2, 1, 3)
    step = list(iterate_steps(COSINE, linear_grid(2), z))[1]
    assert float(renoise(step, z, COSINE, 100.0, None)[0].t) == 1


def test_a_chain_is_left_at_its_nodes():
    chain = make_discrete_schedule("cosine", 40)
    z = torch.randn(2, 1, 3)
    for step in iterate_steps(chain, linear_grid(8), z):
        t = 40 * float(renoise(step, z, chain, 1.5, None)[0].t)
        assert t == pytest.approx(round(t), abs=1e-5)


@both
@pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["cosine", "rectified_flow"])
def test_samples_of_gaussian_data_have_its_moments(sampler, schedule, gaussian):
    z = torch.randn(4000, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    out = sampler(gaussian.denoise(schedule), schedule, linear_grid(64), z, gamma=1.5)
    torch.testing.assert_close(out.mean((0, 1)), gaussian.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(out.std((0, 1)), gaussian.std, atol=0.03, rtol=0.1)


@both
def test_samples_depend_on_the_noise_of_the_steps(sampler, gaussian, noise_at_start, recorded_noise):
    arguments = (gaussian.denoise(COSINE), COSINE, linear_grid(6), noise_at_start)
    plain, noisy = sampler(*arguments), sampler(*arguments, recorded_noise, gamma=1.0)
    assert not torch.allclose(plain, noisy)
    assert torch.equal(noisy, sampler(*arguments, recorded_noise, gamma=1.0))


def test_fresh_noise_corrects_an_error_of_early_steps():
    """Data at one point, and a denoiser that is far off until t = 0.5: the error that is left is smaller with gamma."""

    def denoise(z, t, x0_prev):
        level = FLOW(t.double())
        wrong = (z - level.sigma * torch.ones(())) / level.alpha  # takes a unit of the noise for text
        return torch.where(t > 0.5, torch.full_like(z, 3.0), 0.5 * wrong)

    z = torch.randn(2000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    error = {g: float(sample_ddim(denoise, FLOW, linear_grid(32), z, gamma=g).square().mean()) for g in (0.0, 1.5)}
    assert error[1.5] < error[0.0]


def test_two_sources_of_noise_in_a_step_are_refused():
    with pytest.raises(ValueError, match="use one of them"):
        make_sampler("ddim", eta=1.0, gamma=1.0)
    make_sampler("ddpm", eta=1.0, gamma=1.0)  # which has neither
    assert isinstance(make_sampler("ddim", gamma=1.0), partial)

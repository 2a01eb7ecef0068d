"""DDIM as a map: targets of distillation reproduce the steps of the teacher, and inversion undoes sampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.ddim_maps import ddim_step, ddim_target_x0, eps_from_x0, invert_ddim
from diffusion.denoisers import make_denoise
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.loss import corrupt
from diffusion.samplers import sample_ddim, sample_dpmpp_2m
from diffusion.schedules import broadcast_level, make_continuous_schedule
from diffusion.timesteps import make_grid, respaced_timesteps

COSINE = make_continuous_schedule("cosine")


def rows(*t):
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("name", ["cosine", "simple_linear", "sigmoid"])
@pytest.mark.parametrize("t, s", [(1.0, 0.75), (0.5, 0.25), (0.9, 0.1), (0.3, 0.29)])
def test_ddim_step_with_the_target_x0_reaches_z_s(name, t, s):
    schedule = make_continuous_schedule(name)
    z, z_s = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level_t, level_s = broadcast_level(schedule, rows(t, t, t), z), broadcast_level(schedule, rows(s, s, s), z)
    x0 = ddim_target_x0(z, z_s, level_t, level_s)
    torch.testing.assert_close(ddim_step(z, x0, level_t, level_s), z_s, atol=1e-7, rtol=1e-7)


def test_ddim_step_equals_a_step_of_the_sampler():
    z = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.8, 0.3], dtype=torch.float64)
    level_t, level_s = (broadcast_level(COSINE, t.expand(3), z) for t in times)
    expected = sample_ddim(lambda z, t, x0_prev: torch.tanh(z), COSINE, times, z)
    torch.testing.assert_close(ddim_step(z, torch.tanh(z), level_t, level_s), expected)


def test_eps_from_x0_undoes_corrupt():
    x0, eps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    level = broadcast_level(COSINE, rows(0.2, 0.5, 1.0), x0)
    torch.testing.assert_close(eps_from_x0(corrupt(x0, eps, level), x0, level), eps)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_student_samples_the_same_as_its_teacher(steps):
    """Two clusters, whose best estimate is known. A few DDIM steps with that estimate end elsewhere."""

    def best(z, t, x0_prev=None):  # E[x0 | z] of x0 = +-1, equally likely
        level = broadcast_level(COSINE, t, z)
        return torch.tanh(level.alpha * z / level.sigma**2)

    z = torch.randn(500, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    coarse, fine = make_grid("uniform", COSINE, steps), make_grid("uniform", COSINE, 64)
    student, teacher = z, z
    for k in range(steps):
        t, s = coarse[k], coarse[k + 1]
        sub_grid = fine[(fine <= t + 1e-9) & (fine >= s - 1e-9)]
        teacher = sample_dpmpp_2m(best, COSINE, sub_grid, teacher)
        target = sample_dpmpp_2m(best, COSINE, sub_grid, student)
        level_t, level_s = (broadcast_level(COSINE, x.expand(500), z) for x in (t, s))
        student = (
            target
            if s == 0
            else ddim_step(student, ddim_target_x0(student, target, level_t, level_s), level_t, level_s)
        )
    torch.testing.assert_close(student, teacher, atol=1e-6, rtol=1e-6)
    assert (teacher.abs() > 0.99).double().mean() > 0.98
    undistilled = sample_ddim(best, COSINE, coarse, z)
    assert (undistilled - teacher).abs().mean() > 0.05


# ---- inversion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def wide_gaussian(gaussian):
    """No channel with a std much smaller than the noise of the last step, where many z lead to one x0."""
    gaussian.std = gaussian.std.clamp(min=0.3)
    return gaussian


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (COSINE, "uniform"),
        (COSINE, "karras"),
        (make_continuous_schedule("sqrt"), "log_snr"),
        (make_discrete_schedule("sqrt", 60), "uniform"),
    ],
    ids=str,
)
def test_sampling_undoes_inversion(schedule, name, wide_gaussian, noise_at_start):
    denoise, times = wide_gaussian.denoise(schedule), make_grid(name, schedule, 20)
    x0 = wide_gaussian.mean + wide_gaussian.std * noise_at_start
    z = invert_ddim(denoise, schedule, times, x0, iterations=50)
    torch.testing.assert_close(sample_ddim(denoise, schedule, times, z), x0, atol=1e-6, rtol=0)


def test_inversion_undoes_sampling(wide_gaussian, noise_at_start):
    denoise, times = wide_gaussian.denoise(COSINE), make_grid("log_snr", COSINE, 20)
    x0 = sample_ddim(denoise, COSINE, times, noise_at_start)
    torch.testing.assert_close(
        invert_ddim(denoise, COSINE, times, x0, iterations=50), noise_at_start, atol=1e-4, rtol=0
    )


def test_inversion_with_many_steps_follows_the_ode(wide_gaussian, noise_at_start):
    """The noise has the quantiles of the data."""
    times = make_grid("log_snr", COSINE, 400)
    x0 = wide_gaussian.mean + wide_gaussian.std * noise_at_start
    z = invert_ddim(wide_gaussian.denoise(COSINE), COSINE, times, x0, iterations=2)
    torch.testing.assert_close(z, noise_at_start, atol=0.05, rtol=0)


def test_more_iterations_reduce_the_round_trip_error(wide_gaussian, noise_at_start):
    denoise, times = wide_gaussian.denoise(COSINE), make_grid("log_snr", COSINE, 10)
    x0 = wide_gaussian.mean + wide_gaussian.std * noise_at_start
    errors = [
        float((sample_ddim(denoise, COSINE, times, invert_ddim(denoise, COSINE, times, x0, n)) - x0).abs().max())
        for n in (1, 2, 4, 8)
    ]
    assert all(later < 0.2 * earlier for earlier, later in zip(errors, errors[1:], strict=False)), errors


def test_round_trip_with_a_network():
    torch.manual_seed(0)
    f = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)).double()

    def network(z, time, x0_prev):
        assert torch.is_grad_enabled() is False
        return 0.3 * f(z)

    denoise = make_denoise(network, "v", COSINE)
    x0 = torch.randn(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = make_grid("log_snr", COSINE, 30)
    z = invert_ddim(denoise, COSINE, times, x0, iterations=50)
    torch.testing.assert_close(sample_ddim(denoise, COSINE, times, z), x0, atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [1, 2])
def test_round_trip_with_few_steps_and_a_grid_below_1(steps, wide_gaussian, noise_at_start):
    chain = make_discrete_schedule("cosine", 50)
    times = respaced_timesteps(50, [20, 5][:steps])
    x0 = wide_gaussian.mean + wide_gaussian.std * noise_at_start
    z = invert_ddim(wide_gaussian.denoise(chain), chain, times, x0, iterations=300)
    torch.testing.assert_close(sample_ddim(wide_gaussian.denoise(chain), chain, times, z), x0, atol=1e-3, rtol=0)


def test_number_of_calls_and_error_without_iterations(wide_gaussian, noise_at_start):
    calls = []

    def denoise(z, t, x0_prev):
        calls.append(float(t[0]))
        return wide_gaussian.denoise(COSINE)(z, t)

    invert_ddim(denoise, COSINE, make_grid("uniform", COSINE, 4), noise_at_start, iterations=3)
    assert calls == [0.25] * 3 + [0.5] * 3 + [0.75] * 3 + [1.0] * 3
    with pytest.raises(ValueError, match="1 or more"):
        invert_ddim(denoise, COSINE, make_grid("uniform", COSINE, 4), noise_at_start, iterations=0)

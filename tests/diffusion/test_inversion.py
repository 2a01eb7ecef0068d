from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.ddim_maps import invert_ddim
from diffusion.denoisers import make_denoise
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.samplers import sample_ddim
from diffusion.schedules import make_continuous_schedule
from diffusion.timesteps import make_grid, respaced_timesteps

COSINE = make_continuous_schedule("cosine")


@pytest.fixture
def gaussian(gaussian):
    """No channel much narrower than the noise of a last step, which would leave many z for one x0."""
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
def test_latents_to_noise_to_latents(schedule, name, gaussian, noise_at_start):
    denoise, times = gaussian.denoise(schedule), make_grid(name, schedule, 20)
    x0 = gaussian.mean + gaussian.std * noise_at_start
    z = invert_ddim(denoise, schedule, times, x0, iterations=50)
    torch.testing.assert_close(sample_ddim(denoise, schedule, times, z), x0, atol=1e-6, rtol=0)


def test_noise_to_latents_to_noise(gaussian, noise_at_start):
    denoise, times = gaussian.denoise(COSINE), make_grid("log_snr", COSINE, 20)
    x0 = sample_ddim(denoise, COSINE, times, noise_at_start)
    torch.testing.assert_close(
        invert_ddim(denoise, COSINE, times, x0, iterations=50), noise_at_start, atol=1e-4, rtol=0
    )


def test_the_noise_is_that_of_the_ode(gaussian, noise_at_start):
    """With many steps: standard normal noise of data from the distribution, each at its own quantile."""
    times = make_grid("log_snr", COSINE, 400)
    x0 = gaussian.mean + gaussian.std * noise_at_start
    z = invert_ddim(gaussian.denoise(COSINE), COSINE, times, x0, iterations=2)
    torch.testing.assert_close(z, noise_at_start, atol=0.05, rtol=0)


def test_iterations_bring_the_round_trip_nearer(gaussian, noise_at_start):
    denoise, times = gaussian.denoise(COSINE), make_grid("log_snr", COSINE, 10)
    x0 = gaussian.mean + gaussian.std * noise_at_start
    errors = [
        float((sample_ddim(denoise, COSINE, times, invert_ddim(denoise, COSINE, times, x0, n)) - x0).abs().max())
        for n in (1, 2, 4, 8)
    ]
    assert all(later < 0.2 * earlier for earlier, later in zip(errors, errors[1:], strict=False)), errors


def test_a_network_makes_the_round_trip_too():
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
def test_few_steps_and_a_grid_that_starts_late(steps, gaussian, noise_at_start):
    chain = make_discrete_schedule("cosine", 50)
    times = respaced_timesteps(50, [20, 5][:steps])
    x0 = gaussian.mean + gaussian.std * noise_at_start
    z = invert_ddim(gaussian.denoise(chain), chain, times, x0, iterations=300)
    torch.testing.assert_close(sample_ddim(gaussian.denoise(chain), chain, times, z), x0, atol=1e-3, rtol=0)


def test_calls_are_counted_and_none_is_refused(gaussian, noise_at_start):
    calls = []

    def denoise(z, t, x0_prev):
        calls.append(float(t[0]))
        return gaussian.denoise(COSINE)(z, t)

    invert_ddim(denoise, COSINE, make_grid("uniform", COSINE, 4), noise_at_start, iterations=3)
    assert calls == [0.25] * 3 + [0.5] * 3 + [0.75] * 3 + [1.0] * 3
    with pytest.raises(ValueError, match="1 or more"):
        invert_ddim(denoise, COSINE, make_grid("uniform", COSINE, 4), noise_at_start, iterations=0)

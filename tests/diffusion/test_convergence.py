"""Order of convergence to the exact solution of the probability-flow ODE, for Gaussian data.

Error ~ N ** -order on grids uniform in log-SNR from -5 to 5. A solver that lost what makes it second order still
converges, so only the slope tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffusion.samplers import sample_ddim, sample_dpmpp_2m
from diffusion.schedules import log_snr, make_continuous

SCHEDULE = make_continuous("cosine")
STEPS = (8, 16, 32, 64, 128)


def uniform_in_log_snr(steps: int) -> Tensor:
    """Times of the cosine schedule, (steps + 1,) float64, at log-SNR -5, ..., 5."""
    levels = torch.linspace(-5, 5, steps + 1, dtype=torch.float64)
    return 2 / math.pi * torch.atan(torch.exp(-levels / 2))


def restarted_dpmpp_2m(denoise, schedule, timesteps: Tensor, z: Tensor) -> Tensor:
    """The 2M solver without its history: every transition is the first of a run of its own."""
    for i in range(len(timesteps) - 1):
        z = sample_dpmpp_2m(denoise, schedule, timesteps[i : i + 2], z)
    return z


def order(sampler: Callable[..., Tensor], gaussian, z: Tensor) -> float:
    """Least-squares slope of -log(error) over log(steps)."""
    log_error = []
    for steps in STEPS:
        times = uniform_in_log_snr(steps)
        reached = sampler(gaussian.denoise(SCHEDULE), SCHEDULE, times, z)
        exact = gaussian.flow(SCHEDULE, z, times[0], times[-1])
        log_error.append(math.log((reached - exact).abs().max()))
    x = torch.tensor([math.log(steps) for steps in STEPS], dtype=torch.float64)
    y = torch.tensor(log_error, dtype=torch.float64)
    return -float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def test_the_grid_is_uniform_in_log_snr():
    levels = log_snr(SCHEDULE(uniform_in_log_snr(20)))
    torch.testing.assert_close(levels, torch.linspace(-5, 5, 21, dtype=torch.float64))


def test_the_exact_solution_solves_the_ode(gaussian, noise_at_start):
    """Many small DDIM steps lead to it, so the tests below measure against the truth."""
    times = uniform_in_log_snr(1000)
    reached = sample_ddim(gaussian.denoise(SCHEDULE), SCHEDULE, times, noise_at_start)
    exact = gaussian.flow(SCHEDULE, noise_at_start, times[0], times[-1])
    torch.testing.assert_close(reached, exact, atol=1e-2, rtol=0)


def test_ddim_is_of_first_order(gaussian, noise_at_start):
    assert 0.9 <= order(sample_ddim, gaussian, noise_at_start) <= 1.2


def test_dpmpp_2m_is_of_second_order(gaussian, noise_at_start):
    assert order(sample_dpmpp_2m, gaussian, noise_at_start) >= 1.8


def test_dpmpp_2m_without_its_history_would_be_found_out(gaussian, noise_at_start):
    assert order(restarted_dpmpp_2m, gaussian, noise_at_start) < 1.5


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m_without_its_history_is_ddim(gaussian, noise_at_start, steps):
    times = uniform_in_log_snr(steps)
    denoise = gaussian.denoise(SCHEDULE)
    torch.testing.assert_close(
        restarted_dpmpp_2m(denoise, SCHEDULE, times, noise_at_start),
        sample_ddim(denoise, SCHEDULE, times, noise_at_start),
    )

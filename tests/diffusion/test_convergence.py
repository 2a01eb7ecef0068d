"""Order of convergence to the exact solution of the probability-flow ODE, for Gaussian data.

Error ~ N ** -order on grids uniform in log-SNR from -5 to 5. A solver that lost what makes it second order still
converges, so only the slope tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion.absorbing import absorbing_shift, shift_sampler
from diffusion.guidance import with_known_positions
from diffusion.samplers import sample_ddim, sample_dpmpp_2m, sample_dpmpp_2m_sde, sample_heun
from diffusion.schedules import log_snr, make_continuous_schedule

SCHEDULE = make_continuous_schedule("cosine")
STEPS = (8, 16, 32, 64, 128)
VALUE = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64).expand(2, 2, 4)  # the first position is given
GIVEN = torch.tensor([[True, False]]).expand(2, 2)


def uniform_in_log_snr(steps: int) -> Tensor:
    """Times of the cosine schedule, (steps + 1,) float64, at log-SNR -5, ..., 5."""
    levels = torch.linspace(-5, 5, steps + 1, dtype=torch.float64)
    return 2 / math.pi * torch.atan(torch.exp(-levels / 2))


def restarted_dpmpp_2m(denoise, schedule, timesteps: Tensor, z: Tensor) -> Tensor:
    """The 2M solver without its history: every transition is the first of a separate run."""
    for i in range(len(timesteps) - 1):
        z = sample_dpmpp_2m(denoise, schedule, timesteps[i : i + 2], z)
    return z


def slope(error: Callable[[Tensor], float]) -> float:
    """Least-squares slope of -log(error(times)) over log(steps)."""
    y = torch.tensor([math.log(error(uniform_in_log_snr(steps))) for steps in STEPS], dtype=torch.float64)
    x = torch.tensor([math.log(steps) for steps in STEPS], dtype=torch.float64)
    return -float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def order(sampler: Callable[..., Tensor], gaussian, z: Tensor) -> float:
    def error(times: Tensor) -> float:
        reached = sampler(gaussian.denoise(SCHEDULE), SCHEDULE, times, z)
        return float((reached - gaussian.flow(SCHEDULE, z, times[0], times[-1])).abs().max())

    return slope(error)


def anchored_order(sampler: Callable[..., Tensor], prefixed, z: Tensor) -> float:
    """Order for the second position, given the first."""
    denoise = with_known_positions(prefixed.denoise(SCHEDULE), VALUE, GIVEN)

    def error(times: Tensor) -> float:
        reached = sampler(denoise, SCHEDULE, times, z)[:, 1:]
        return float((reached - prefixed.flow(SCHEDULE, VALUE[:, :1], z[:, 1:], times[0], times[-1])).abs().max())

    return slope(error)


def test_the_grid_is_uniform_in_log_snr():
    levels = log_snr(SCHEDULE(uniform_in_log_snr(20)))
    torch.testing.assert_close(levels, torch.linspace(-5, 5, 21, dtype=torch.float64))


def test_the_exact_solution_solves_the_ode(gaussian, noise_at_start):
    """Many small DDIM steps lead to it, so the tests below measure against the truth."""
    times = uniform_in_log_snr(1000)
    reached = sample_ddim(gaussian.denoise(SCHEDULE), SCHEDULE, times, noise_at_start)
    exact = gaussian.flow(SCHEDULE, noise_at_start, times[0], times[-1])
    torch.testing.assert_close(reached, exact, atol=1e-2, rtol=0)


ORDERS = {sample_ddim: (0.9, 1.2), sample_dpmpp_2m: (1.8, 3.0), sample_heun: (1.8, 3.0)}
every_solver = pytest.mark.parametrize("solver", ORDERS, ids=lambda solver: solver.__name__)


@every_solver
def test_solvers_have_their_order_of_convergence(solver, gaussian, noise_at_start):
    least, most = ORDERS[solver]
    assert least <= order(solver, gaussian, noise_at_start) <= most


@every_solver
def test_solvers_keep_their_order_with_an_absorbing_state_and_known_positions(solver, prefixed, noise_at_start):
    """In coordinates moved by m at the second position, the rest of its text has the mean less m."""
    state = torch.tensor([0.5, 2.0, -1.0, 1.0], dtype=torch.float64)
    shift = absorbing_shift(state, torch.tensor([[False, True]]))
    prefixed.rest.mean = prefixed.rest.mean - state
    inner = prefixed.denoise(SCHEDULE)

    def sampler(denoise, schedule, times, z):
        anchored_inner = with_known_positions(lambda z, t, x0_prev: inner(z - shift, t) + shift, VALUE, GIVEN)
        return shift_sampler(solver, shift)(anchored_inner, schedule, times, z) - shift

    least, most = ORDERS[solver]
    assert least <= anchored_order(sampler, prefixed, noise_at_start[:, :2]) <= most


@every_solver
def test_solvers_keep_their_order_with_known_positions(solver, prefixed, noise_at_start):
    least, most = ORDERS[solver]
    assert least <= anchored_order(solver, prefixed, noise_at_start[:, :2]) <= most


def test_dpmpp_2m_without_history_is_first_order(gaussian, noise_at_start):
    assert order(restarted_dpmpp_2m, gaussian, noise_at_start) < 1.5


@pytest.mark.parametrize("steps", STEPS)
def test_dpmpp_2m_without_its_history_is_ddim(gaussian, noise_at_start, steps):
    times = uniform_in_log_snr(steps)
    denoise = gaussian.denoise(SCHEDULE)
    torch.testing.assert_close(
        restarted_dpmpp_2m(denoise, SCHEDULE, times, noise_at_start),
        sample_ddim(denoise, SCHEDULE, times, noise_at_start),
    )


def moments(sampler: Callable[..., Tensor], gaussian, times: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and variance (D,) of what a sampler makes of Gaussian data: each step is affine in z and in noise.

    The responses to a unit of z at the start, and to a unit of noise at each step, are rows 1, 2, ... of a batch;
    row 0 gets nothing.
    """
    steps = len(times) - 1

    def noise(step: int, like: Tensor) -> Tensor:
        unit = torch.zeros_like(like)
        unit[2 + step] = 1
        return unit

    z = torch.zeros(2 + steps, 1, 4, dtype=torch.float64)
    z[1] = 1
    out = sampler(gaussian.denoise(SCHEDULE), SCHEDULE, times, z, noise)[:, 0]
    response = out[1:] - out[0]  # (1 + steps, D)
    alpha, sigma = SCHEDULE(times[0])
    mean = out[0] + response[0] * alpha * gaussian.mean
    variance = response[0] ** 2 * (alpha**2 * gaussian.std**2 + sigma**2) + (response[1:] ** 2).sum(0)
    return mean, variance


def weak_error(sampler: Callable[..., Tensor], gaussian) -> Callable[[Tensor], float]:
    def error(times: Tensor) -> float:
        alpha, sigma = SCHEDULE(times[-1])
        mean, variance = moments(sampler, gaussian, times)
        wrong = (mean - alpha * gaussian.mean).abs(), (variance - alpha**2 * gaussian.std**2 - sigma**2).abs()
        return float(torch.stack(wrong).max())

    return error


def test_the_stochastic_solver_has_the_right_moments(gaussian):
    error, plain = weak_error(sample_dpmpp_2m_sde, gaussian), weak_error(partial(sample_ddim, eta=1.0), gaussian)
    assert slope(error) >= 1.7 and slope(plain) < 1.2
    assert all(error(times) < 0.3 * plain(times) for times in map(uniform_in_log_snr, STEPS))
    assert error(uniform_in_log_snr(128)) < 2e-3

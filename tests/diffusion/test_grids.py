from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion import options
from diffusion.chains import DISCRETE, make_discrete
from diffusion.grids import GRIDS, LOG_SNR_RANGE, discrete_grid, grid, make_grid, time_at
from diffusion.schedules import CONTINUOUS, log_snr, make_continuous

COSINE = make_continuous("cosine")
every_grid = pytest.mark.parametrize("name", GRIDS)


def test_the_flags_offer_the_grids_there_are():
    assert set(options.GRIDS) == set(GRIDS)


@every_grid
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(CONTINUOUS)),
    scale=st.floats(0.02, 50),
    steps=st.one_of(st.integers(1, 60), st.just(1000)),
)
def test_every_grid_falls_from_one_to_zero(name, kind, scale, steps):
    times = make_grid(name, make_continuous(kind, scale), steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert times[0] == 1 and times[-1] == 0 and times.isfinite().all()
    assert (times.float().diff() < 0).all(), "still apart in the precision that the network sees"


@every_grid
@settings(max_examples=25, deadline=None)
@given(chain=st.sampled_from(list(DISCRETE)), timesteps=st.integers(1, 60), data=st.data())
def test_on_a_chain_every_grid_is_of_nodes(name, chain, timesteps, data):
    steps = data.draw(st.integers(1, timesteps))
    times = make_grid(name, make_discrete(chain, timesteps), steps) * timesteps
    torch.testing.assert_close(times, times.round(), atol=1e-9, rtol=0)
    assert len(times) == steps + 1
    assert times[0] == timesteps and times[-1] == 0 and (times.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 999])
def test_grid_falls_evenly_from_one_to_zero(steps):
    times = grid(steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert times[0] == 1 and times[-1] == 0
    torch.testing.assert_close(times.diff(), torch.full((steps,), -1 / steps, dtype=torch.float64))


@pytest.mark.parametrize(("steps", "timesteps"), [(1, 1), (1, 1000), (250, 1000), (7, 10), (10, 10), (60, 1000)])
def test_discrete_grid_is_the_published_sub_sequence(steps, timesteps):
    times = discrete_grid(steps, timesteps)
    index = (times * timesteps).round().int() - 1
    published = torch.linspace(-1, timesteps - 1, steps + 1, dtype=torch.float64)
    wanted = published.add(1e-9).floor().int().flip(0)  # int(), but for -1 + rounding
    assert torch.equal(index, wanted)
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


def test_a_schedule_gets_the_uniform_grid_that_suits_it():
    assert torch.equal(make_grid("uniform", COSINE, 5), grid(5))
    assert torch.equal(make_grid("uniform", make_discrete("cosine", 12), 5), discrete_grid(5, 12))


def test_log_snr_grid_is_even_in_log_snr_within_its_range():
    levels = log_snr(COSINE(make_grid("log_snr", COSINE, 10)))[1:-1]
    torch.testing.assert_close(levels.diff(), torch.full((8,), 2.0, dtype=torch.float64))
    assert levels[-1] == pytest.approx(LOG_SNR_RANGE)


def test_karras_grid_is_equation_5():
    level = COSINE(make_grid("karras", COSINE, 18, rho=7)[1:-1])
    sigma = level.sigma / level.alpha
    largest, smallest = math.exp(LOG_SNR_RANGE / 2), math.exp(-LOG_SNR_RANGE / 2)
    i = torch.arange(1, 18, dtype=torch.float64)
    wanted = (largest ** (1 / 7) + i / 17 * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma, wanted, atol=0, rtol=1e-6)
    even = make_grid("log_snr", COSINE, 18)
    torch.testing.assert_close(make_grid("karras", COSINE, 18, rho=1e5), even, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["shifted", "logit_normal"])
def test_a_shift_multiplies_the_odds_of_time(name):
    plain, moved = (make_grid(name, COSINE, 12, shift=shift)[1:-1] for shift in (1.0, 2.5))
    torch.testing.assert_close(moved / (1 - moved), 2.5 * plain / (1 - plain))


def test_a_shift_of_one_is_uniform_and_three_is_what_shifted_means():
    assert torch.equal(make_grid("shifted", COSINE, 7, shift=1.0), grid(7))
    assert torch.equal(make_grid("shifted", COSINE, 7), make_grid("shifted", COSINE, 7, shift=3.0))


def test_logit_normal_quantiles_hold_equal_probability():
    t = make_grid("logit_normal", COSINE, 4)[1:-1]
    below = 0.5 * (1 + torch.erf(torch.logit(t) / math.sqrt(2)))
    torch.testing.assert_close(below, torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("schedule", [COSINE, make_continuous("sqrt"), make_discrete("pw_lin", 30)], ids=repr)
def test_time_at_inverts_a_schedule(schedule):
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    torch.testing.assert_close(time_at(schedule, log_snr(schedule(t))), t, atol=1e-6, rtol=0)
    ends = time_at(schedule, torch.tensor([-1e3, 1e3]))
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: grid(0), "1 or more"),
        (lambda: discrete_grid(0, 10), "1 or more"),
        (lambda: discrete_grid(11, 10), "10 or fewer"),
        (lambda: make_grid("karras", make_discrete("sqrt", 10), 11), "10 or fewer"),
        (lambda: make_grid("log_snr", COSINE, 0), "1 or more"),
        (lambda: make_grid("even", COSINE, 4), "even"),
        (lambda: make_grid("uniform", COSINE, 4, shift=2.0), "no meaning"),
        (lambda: make_grid("shifted", COSINE, 4, shift=-1.0), "positive"),
        (lambda: make_grid("karras", COSINE, 4, rho=0.0), "rho"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(wrong, words):
    with pytest.raises(ValueError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)

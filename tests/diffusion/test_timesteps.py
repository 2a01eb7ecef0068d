from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusion.denoisers import get_time_input, make_denoise
from diffusion.discrete_schedules import DISCRETE_SCHEDULES, DiscreteSchedule, make_discrete_schedule
from diffusion.sampler_steps import iterate_steps
from diffusion.samplers import (
    POSTERIOR_VARIANCES,
    sample_ddim,
    sample_ddpm,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_heun,
)
from diffusion.schedules import CONTINUOUS_SCHEDULES, log_snr, make_continuous_schedule
from diffusion.timesteps import (
    LOG_SNR_RANGE,
    TIMESTEP_GRIDS,
    chain_grid,
    invert_log_snr,
    linear_grid,
    make_grid,
    parse_respacing,
    respaced_timesteps,
)

COSINE = make_continuous_schedule("cosine")
every_grid = pytest.mark.parametrize("name", TIMESTEP_GRIDS)


@every_grid
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(CONTINUOUS_SCHEDULES)),
    scale=st.floats(0.02, 50),
    steps=st.one_of(st.integers(1, 60), st.just(1000)),
)
def test_every_grid_falls_from_one_to_zero(name, kind, scale, steps):
    times = make_grid(name, make_continuous_schedule(kind, scale), steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert times[0] == 1 and times[-1] == 0 and times.isfinite().all()
    assert (times.float().diff() < 0).all(), "still different in the precision of the network's input"


@every_grid
@settings(max_examples=25, deadline=None)
@given(chain=st.sampled_from(list(DISCRETE_SCHEDULES)), timesteps=st.integers(1, 60), data=st.data())
def test_on_a_chain_every_grid_consists_of_nodes(name, chain, timesteps, data):
    steps = data.draw(st.integers(1, timesteps))
    times = make_grid(name, make_discrete_schedule(chain, timesteps), steps) * timesteps
    torch.testing.assert_close(times, times.round(), atol=1e-9, rtol=0)
    assert len(times) == steps + 1
    assert times[0] == timesteps and times[-1] == 0 and (times.diff() < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 999])
def test_grid_falls_evenly_from_one_to_zero(steps):
    times = linear_grid(steps)
    assert times.dtype == torch.float64 and len(times) == steps + 1
    assert times[0] == 1 and times[-1] == 0
    torch.testing.assert_close(times.diff(), torch.full((steps,), -1 / steps, dtype=torch.float64))


@pytest.mark.parametrize(("steps", "timesteps"), [(1, 1), (1, 1000), (250, 1000), (7, 10), (10, 10), (60, 1000)])
def test_discrete_grid_is_the_published_sub_sequence(steps, timesteps):
    times = chain_grid(steps, timesteps)
    index = (times * timesteps).round().int() - 1
    published = torch.linspace(-1, timesteps - 1, steps + 1, dtype=torch.float64)
    expected = published.add(1e-9).floor().int().flip(0)  # int(), but for -1 + rounding
    assert torch.equal(index, expected)
    assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


def test_the_uniform_grid_depends_on_the_kind_of_schedule():
    assert torch.equal(make_grid("uniform", COSINE, 5), linear_grid(5))
    assert torch.equal(make_grid("uniform", make_discrete_schedule("cosine", 12), 5), chain_grid(5, 12))


def test_log_snr_grid_is_even_in_log_snr_within_its_range():
    levels = log_snr(COSINE(make_grid("log_snr", COSINE, 10)))[1:-1]
    torch.testing.assert_close(levels.diff(), torch.full((8,), 2.0, dtype=torch.float64))
    assert levels[-1] == pytest.approx(LOG_SNR_RANGE)


def test_karras_grid_is_equation_5():
    level = COSINE(make_grid("karras", COSINE, 18, rho=7)[1:-1])
    sigma = level.sigma / level.alpha
    largest, smallest = math.exp(LOG_SNR_RANGE / 2), math.exp(-LOG_SNR_RANGE / 2)
    i = torch.arange(1, 18, dtype=torch.float64)
    expected = (largest ** (1 / 7) + i / 17 * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma, expected, atol=0, rtol=1e-6)
    even = make_grid("log_snr", COSINE, 18)
    torch.testing.assert_close(make_grid("karras", COSINE, 18, rho=1e5), even, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["shifted", "logit_normal"])
def test_a_shift_multiplies_the_odds_of_time(name):
    plain, moved = (make_grid(name, COSINE, 12, shift=shift)[1:-1] for shift in (1.0, 2.5))
    torch.testing.assert_close(moved / (1 - moved), 2.5 * plain / (1 - plain))


def test_shift_one_is_uniform_and_three_is_the_default_of_shifted():
    assert torch.equal(make_grid("shifted", COSINE, 7, shift=1.0), linear_grid(7))
    assert torch.equal(make_grid("shifted", COSINE, 7), make_grid("shifted", COSINE, 7, shift=3.0))


def test_logit_normal_quantiles_hold_equal_probability():
    t = make_grid("logit_normal", COSINE, 4)[1:-1]
    below = 0.5 * (1 + torch.erf(torch.logit(t) / math.sqrt(2)))
    torch.testing.assert_close(below, torch.tensor([0.75, 0.5, 0.25], dtype=torch.float64))


@pytest.mark.parametrize(
    "schedule", [COSINE, make_continuous_schedule("sqrt"), make_discrete_schedule("pw_lin", 30)], ids=repr
)
def test_invert_log_snr_inverts_a_schedule(schedule):
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    torch.testing.assert_close(invert_log_snr(schedule, log_snr(schedule(t))), t, atol=1e-6, rtol=0)
    ends = invert_log_snr(schedule, torch.tensor([-1e3, 1e3]))
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_grid(0), "1 or more"),
        (lambda: chain_grid(0, 10), "1 or more"),
        (lambda: chain_grid(11, 10), "10 or fewer"),
        (lambda: make_grid("karras", make_discrete_schedule("sqrt", 10), 11), "10 or fewer"),
        (lambda: make_grid("log_snr", COSINE, 0), "1 or more"),
        (lambda: make_grid("even", COSINE, 4), "even"),
        (lambda: make_grid("uniform", COSINE, 4, shift=2.0), "no effect on the uniform grid"),
        (lambda: make_grid("shifted", COSINE, 4, shift=-1.0), "positive"),
        (lambda: make_grid("karras", COSINE, 4, rho=0.0), "rho"),
    ],
)
def test_an_invalid_grid_is_a_one_line_error(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


SAMPLERS = {
    "ddpm large": sample_ddpm,
    "ddpm small": partial(sample_ddpm, variance="small"),
    "ddim": sample_ddim,
    "dpmpp": sample_dpmpp_2m,
    "dpmpp_sde": sample_dpmpp_2m_sde,
    "heun": sample_heun,
}


@pytest.mark.parametrize(
    ("spec", "timesteps", "indices"),
    [
        ("ddim5", 10, [8, 6, 4, 2, 0]),
        ("ddim1", 10, [0]),
        ("10", 10, list(range(9, -1, -1))),
        ("3", 11, [10, 5, 0]),
        ("1", 10, [0]),
        ("2,3,1", 11, [8, 7, 6, 4, 3, 0]),  # sections 0-3, 4-7, 8-10, each from its first to its last step
        ("2,2,1", 11, [8, 7, 4, 3, 0]),
        ("at:0,4,9", 10, [9, 4, 0]),
        ([4, 0, 9, 4], 10, [9, 4, 0]),
    ],
)
def test_respacing_selects_the_published_steps(spec, timesteps, indices):
    assert parse_respacing(spec, timesteps) == indices


@settings(max_examples=60, deadline=None)
@given(timesteps=st.integers(2, 80), data=st.data())
def test_each_section_has_the_requested_number_of_steps(timesteps, data):
    sections = data.draw(st.integers(1, min(4, timesteps)))
    size, longer = divmod(timesteps, sections)
    counts = [data.draw(st.integers(1, size + (k < longer))) for k in range(sections)]
    kept = parse_respacing(",".join(map(str, counts)), timesteps)
    assert len(kept) == sum(counts) and kept == sorted(set(kept), reverse=True)
    start = 0
    for k, count in enumerate(counts):
        stop = start + size + (k < longer)
        inside = [i for i in kept if start <= i < stop]
        assert len(inside) == count and inside[-1] == start and (count == 1 or inside[0] == stop - 1)
        start = stop


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(DISCRETE_SCHEDULES)),
    sampler=st.sampled_from(list(SAMPLERS)),
    timesteps=st.integers(2, 60),
    data=st.data(),
)
def test_a_perfect_predictor_reaches_zero_noise_at_every_respacing(name, sampler, timesteps, data):
    """For every choice of steps the state has the noise of the time that the network receives; the end is x0."""
    kept = data.draw(st.sets(st.integers(0, timesteps - 1), min_size=1))
    chain, times = make_discrete_schedule(name, timesteps), respaced_timesteps(timesteps, list(kept))
    x0 = torch.full((2000, 1, 1), 0.7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    level = chain(times[0])
    z = level.alpha * x0 + level.sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)

    def denoise(z, t, x0_prev):
        level_t = chain(t[0])
        std = float(((z - level_t.alpha * x0) / level_t.sigma).square().mean().sqrt())
        # the large variance is that of unit Gaussian data: with x0 known it is too much, but never without bound
        assert abs(std - 1) < 0.1 or (sampler == "ddpm large" and std < 40)
        return x0

    def noise(step, like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    assert torch.equal(SAMPLERS[sampler](denoise, chain, times, z, noise), x0)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(list(DISCRETE_SCHEDULES)), timesteps=st.integers(2, 60), data=st.data())
def test_respacing_equals_the_chain_of_the_betas_between_selected_steps(name, timesteps, data):
    """The published construction: betas rebuilt from the kept alpha_bar, and a map from new indices to old ones."""
    kept = sorted(data.draw(st.sets(st.integers(0, timesteps - 1), min_size=1)))
    chain = make_discrete_schedule(name, timesteps)
    alpha_bar = torch.cumprod(1 - DISCRETE_SCHEDULES[name](timesteps), 0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    betas = 1 - alpha_bar / before
    assume(betas.max() < 1 - 1e-12)  # a step that destroys more has the beta 1 in float64, and its chain no end
    rounding = (torch.finfo(torch.float64).eps / (1 - betas)).cumsum(0)  # what 1 - beta loses, as log alpha_bar sees it
    rebuilt = DiscreteSchedule(betas)
    z = torch.zeros(1, 1, 1, dtype=torch.float64)
    steps = list(iterate_steps(chain, respaced_timesteps(timesteps, kept), z))
    whole = list(iterate_steps(rebuilt, chain_grid(len(kept), len(kept)), z))
    for at, new, old in zip(steps, whole, reversed(range(len(kept))), strict=True):
        atol = 1e-9 + 4 * float(rounding[old])
        torch.testing.assert_close(log_snr(at.level_t), log_snr(new.level_t), atol=atol, rtol=1e-9)
        time_inputs = get_time_input(chain, at.t_batch, "index") * timesteps
        torch.testing.assert_close(
            time_inputs, torch.tensor([float(kept[old])], dtype=torch.float64), atol=1e-9, rtol=0
        )
        one, bar, bar_s = 1 - (at.level_t.alpha / at.level_s.alpha) ** 2, at.level_t.alpha**2, at.level_s.alpha**2
        large, small = (POSTERIOR_VARIANCES[name](one, bar, bar_s, None) for name in ("large", "small"))
        torch.testing.assert_close(large, betas[old], atol=1e-9, rtol=1e-6)
        posterior = betas[old] * (1 - before[old]) / (1 - alpha_bar[old])
        torch.testing.assert_close(small, posterior, atol=1e-9, rtol=1e-6)


def test_the_network_receives_the_times_of_its_training_chain():
    chain, time_inputs = make_discrete_schedule("sqrt", 2000), []

    def network(z, time, x0_prev):
        time_inputs.append(float(1000 * time[0]))
        return z

    denoise = make_denoise(network, "x0", chain, "index")
    sample_ddim(denoise, chain, respaced_timesteps(2000, [1999, 1000, 3]), torch.zeros(1, 1, 1, dtype=torch.float64))
    assert time_inputs == pytest.approx([999.5, 500.0, 1.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_respacing("ddim7", 10), "ddim4 or ddim5"),
        (lambda: parse_respacing("ddim3,4", 10), "ddim3,4"),
        (lambda: parse_respacing("fast", 10), "fast"),
        (lambda: parse_respacing("", 10), "none of"),
        (lambda: parse_respacing("6,3", 10), "section 1 of the chain has 5 steps"),
        (lambda: parse_respacing("0", 10), "selects 0"),
        (lambda: parse_respacing("at:3,10", 10), "step 10"),
        (lambda: parse_respacing([], 10), "no step"),
        (lambda: respaced_timesteps(10, []), "no step"),
    ],
)
def test_an_invalid_respacing_is_a_one_line_error(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)

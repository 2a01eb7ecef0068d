from __future__ import annotations

import math

import pytest
import torch

from diffusion.time_sampling import RESOLUTION, T_SCHEDULES, TIME_SAMPLERS, max_time, max_timestep, sample_stratified

UNWEIGHTED = ("uniform", "stratified")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", UNWEIGHTED)
@pytest.mark.parametrize("max_time", [1.0, 0.2])
def test_continuous_draws_are_uniform_up_to_max_time(name, max_time):
    t, weight = TIME_SAMPLERS[name](20_000, seeded(), max_time=max_time)
    assert t.shape == weight.shape == (20_000,) and (weight == 1).all()
    assert (t >= 0).all() and (t < max_time).all()
    deciles = torch.histc(t / max_time, 10, 0, 1) / len(t)
    torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", UNWEIGHTED)
@pytest.mark.parametrize(("timesteps", "max_time", "steps"), [(10, 1.0, 10), (10, 0.3, 3), (3, 0.01, 1), (1, 1.0, 1)])
def test_draws_of_a_chain_are_its_first_nodes(name, timesteps, max_time, steps):
    t, _ = TIME_SAMPLERS[name](5000, seeded(), max_time=max_time, timesteps=timesteps)
    nodes, counts = t.unique(return_counts=True)
    torch.testing.assert_close(nodes, (torch.arange(steps) + 1) / timesteps)
    assert (counts > 5000 / steps * 0.8).all()


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_draws_depend_on_the_generator_alone(name):
    assert torch.equal(TIME_SAMPLERS[name](8, seeded(3))[0], TIME_SAMPLERS[name](8, seeded(3))[0])
    assert not torch.equal(TIME_SAMPLERS[name](8, seeded(3))[0], TIME_SAMPLERS[name](8, seeded(4))[0])


def test_stratified_times_fill_every_stratum_in_random_order():
    t, _ = sample_stratified(64, seeded())
    assert sorted((t * 64).floor().int().tolist()) == list(range(64))
    assert not torch.equal(t, t.sort().values)


every_name = pytest.mark.parametrize("name", T_SCHEDULES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("normal", [1000, 1000, 1000, 1000, 1000, 1000]),
        ("linear", [200, 240, 400, 600, 960, 1000]),
        ("polynomial", [200, 202, 250, 400, 922, 1000]),
        ("cosine", [200, int(200 + 400 * (1 - math.cos(0.05 * math.pi))), 317, 600, 995, 1000]),
        ("unsmooth", [200, 200, 400, 600, 800, 1000]),
    ],
)
def test_the_range_grows_over_the_first_half_of_training(name, expected):
    steps = [0, 5, 25, 50, 95, 100]
    assert [max_timestep(name, step, 200, 1000) for step in steps] == expected
    assert max_timestep(name, 199, 200, 1000) == 1000


@every_name
@pytest.mark.parametrize("timesteps", [1, 3, 50, 1000])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_the_range_never_shrinks_is_never_empty_and_ends_complete(name, timesteps, num_steps):
    ranges = [max_timestep(name, step, num_steps, timesteps) for step in range(num_steps + 1)]
    assert ranges == sorted(ranges)
    assert ranges[0] >= 1 and ranges[-1] == timesteps


def test_the_power_affects_only_the_polynomial():
    assert max_timestep("polynomial", 50, 200, 1000, power=1) == max_timestep("linear", 50, 200, 1000)
    assert max_timestep("polynomial", 50, 200, 1000, power=4) == 250
    assert max_timestep("cosine", 50, 200, 1000, power=4) == max_timestep("cosine", 50, 200, 1000)


@every_name
def test_continuous_time_is_annealed_in_thousandths(name):
    for step in (0, 33, 100):
        assert max_time(name, step, 200) == max_timestep(name, step, 200, RESOLUTION) / RESOLUTION
        assert max_time(name, step, 200, timesteps=50) == max_timestep(name, step, 200, 50) / 50


def test_an_unknown_schedule_of_the_range_is_an_error():
    with pytest.raises(ValueError, match="stepwise"):
        max_time("stepwise", 0, 10)

from __future__ import annotations

import pytest
import torch

from diffusion.schedules import make_continuous, make_discrete
from diffusion.times import DRAWS, discrete_grid, draw_stratified, grid, sampling_grid


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("t_max", [1.0, 0.2])
def test_continuous_draws_are_uniform_up_to_t_max(name, t_max):
    t, weight = DRAWS[name](20_000, seeded(), t_max=t_max)
    assert t.shape == weight.shape == (20_000,) and (weight == 1).all()
    assert (t >= 0).all() and (t < t_max).all()
    deciles = torch.histc(t / t_max, 10, 0, 1) / len(t)
    torch.testing.assert_close(deciles, torch.full((10,), 0.1), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("timesteps", "t_max", "steps"), [(10, 1.0, 10), (10, 0.3, 3), (3, 0.01, 1), (1, 1.0, 1)])
def test_draws_of_a_chain_are_its_first_nodes(name, timesteps, t_max, steps):
    t, _ = DRAWS[name](5000, seeded(), t_max=t_max, timesteps=timesteps)
    nodes, counts = t.unique(return_counts=True)
    torch.testing.assert_close(nodes, (torch.arange(steps) + 1) / timesteps)
    assert (counts > 5000 / steps * 0.8).all()


@pytest.mark.parametrize("name", DRAWS)
def test_draws_depend_on_the_generator_alone(name):
    assert torch.equal(DRAWS[name](8, seeded(3))[0], DRAWS[name](8, seeded(3))[0])
    assert not torch.equal(DRAWS[name](8, seeded(3))[0], DRAWS[name](8, seeded(4))[0])


def test_stratified_times_fill_every_stratum_in_random_order():
    t, _ = draw_stratified(64, seeded())
    assert sorted((t * 64).floor().int().tolist()) == list(range(64))
    assert not torch.equal(t, t.sort().values)


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


def test_a_schedule_gets_the_grid_that_suits_it():
    assert torch.equal(sampling_grid(make_continuous("cosine"), 5), grid(5))
    assert torch.equal(sampling_grid(make_discrete("cosine", 12), 5), discrete_grid(5, 12))


def test_a_grid_without_steps_or_with_too_many_is_refused_in_one_line():
    for wrong in (lambda: grid(0), lambda: discrete_grid(0, 10), lambda: discrete_grid(11, 10)):
        with pytest.raises(ValueError) as caught:
            wrong()
        assert "\n" not in str(caught.value)

from __future__ import annotations

import pytest
import torch

from diffusion.times import DRAWS, draw_stratified


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

"""Training times by the growth of the error of x0, and logit-normal ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.adaptive_times import EvenLoss, growth_by_bin, isotonic
from diffusion.time_sampling import sample_logit_normal

CASES = [(None, None), (None, 20), (40, None), (40, 8), (2000, 100), (1, None)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error_at(t: torch.Tensor) -> torch.Tensor:
    """Most of it between 0.4 and 0.6, as where texts are decided."""
    return torch.sigmoid(20 * (t - 0.5))


def warmed(timesteps: int | None, bins: int | None, rounds: int = 20, noise: float = 0.0) -> EvenLoss:
    times = EvenLoss(timesteps, bins=bins)
    g = seeded(1)
    for _ in range(rounds):
        t, _ = times(1000, g, timesteps=timesteps)
        error = error_at(t - (0.5 / timesteps if timesteps else 0))
        times.update(t, error * (1 + noise * torch.randn(len(t), generator=g)))
    return times


def test_uniform_until_every_bin_has_ten_errors():
    times = EvenLoss(bins=4)
    for part in (0.1, 0.3, 0.6):
        times.update(torch.full((10,), part), torch.full((10,), part))
    times.update(torch.full((9,), 0.9), torch.full((9,), 0.9))
    assert torch.allclose(times.probabilities(), torch.full((100,), 0.01))
    times.update(torch.tensor([0.9]), torch.tensor([0.9]))
    assert not torch.allclose(times.probabilities(), torch.full((100,), 0.01))


@pytest.mark.parametrize(("timesteps", "bins"), CASES)
def test_equally_many_times_where_the_error_grows_equally(timesteps, bins):
    """As a function of its rank among the times, the error is a straight line."""
    times = warmed(timesteps, bins)
    times.uniform = 1e-6
    p = times.probabilities()
    assert p.sum() == pytest.approx(1, abs=1e-5) and bool((p >= 0).all())
    if timesteps == 1:
        return
    edges = torch.arange(times.cells + 1) / times.cells
    share = (error_at(edges) - error_at(edges[:1])) / (error_at(edges[-1:]) - error_at(edges[:1]))
    fine = times.bins >= 40  # coarse bins know the slope only on average
    tolerance = 0.02 if fine else 0.15
    torch.testing.assert_close(torch.cat([torch.zeros(1), p.cumsum(0)]), share, atol=tolerance, rtol=0)
    t, _ = times(4000, seeded(), timesteps=timesteps)
    middle = ((t > 0.4) & (t <= 0.6)).float().mean()
    assert float(middle) == pytest.approx(0.762, abs=0.1 if fine else 0.25)


def test_noisy_errors_change_little():
    exact, noisy = warmed(None, 100), warmed(None, 100, rounds=200, noise=0.3)
    apart = (exact.probabilities().cumsum(0) - noisy.probabilities().cumsum(0)).abs().max()
    assert float(apart) < 0.05


def test_every_time_keeps_being_drawn():
    times = warmed(None, None)
    assert float(times.probabilities().min()) >= 0.05 / 100 * 0.99


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_isotonic_is_the_pooled_sequence(values):
    """Against pool-adjacent-violators, block by block."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and sum(blocks[-2]) / len(blocks[-2]) > sum(blocks[-1]) / len(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    pooled = [sum(block) / len(block) for block in blocks for _ in block]
    found = isotonic(torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor(pooled, dtype=torch.float64), atol=1e-9, rtol=1e-9)


def test_growth_of_a_straight_line_is_even():
    errors = (torch.arange(10) + 0.5) / 10
    torch.testing.assert_close(growth_by_bin(errors), torch.full((10,), 0.1))
    assert growth_by_bin(torch.ones(1)).tolist() == [1.0]


@pytest.mark.parametrize(("timesteps", "bins"), [(None, 20), (40, 8)])
def test_a_restored_sampler_draws_the_same(timesteps, bins):
    times, restored = warmed(timesteps, bins), EvenLoss(timesteps, bins=bins)
    restored.load_state_dict(times.state_dict())
    for sampler in (times, restored):
        sampler.update(torch.tensor([0.5, 1.0]), torch.tensor([0.4, 0.9]))
    drawn = [sampler(50, seeded(3), timesteps=timesteps)[0] for sampler in (times, restored)]
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="bins of time"):
        EvenLoss(timesteps, bins=5).load_state_dict(times.state_dict())


def test_errors_that_are_not_finite_are_ignored_and_order_does_not_matter():
    t, error = torch.rand(300, generator=seeded()), torch.rand(300, generator=seeded(1))
    one, other = EvenLoss(bins=10), EvenLoss(bins=10)
    one.update(t, error)
    order = torch.randperm(300, generator=seeded(2))
    other.update(torch.cat([t[order], torch.tensor([0.5])]), torch.cat([error[order], torch.tensor([math.inf])]))
    torch.testing.assert_close(one.errors(), other.errors())
    assert one.counts.sum() == other.counts.sum() == 300


def test_errors_decay_with_every_one_that_follows():
    times, d = EvenLoss(bins=1, decay=0.9), 0.9
    times.update(torch.full((3,), 0.5), torch.zeros(3))
    times.update(torch.full((2,), 0.5), torch.ones(2))
    assert float(times.errors()) == pytest.approx((1 - d**2) / (1 - d**5), rel=1e-4)


def test_times_of_another_chain_are_refused():
    with pytest.raises(ValueError, match="continuous time"):
        EvenLoss()(4, seeded(), timesteps=10)
    for wrong in ({"bins": -1}, {"decay": 1.0}, {"uniform": 0.0}):
        with pytest.raises(ValueError, match="bins"):
            EvenLoss(**wrong)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.8), (-1.0, 0.5)])
def test_logit_normal_times_have_normal_logits(mean, std):
    t, weight = sample_logit_normal(20_000, seeded(), mean=mean, std=std)
    logit = torch.logit(t.double())
    assert float(logit.mean()) == pytest.approx(mean, abs=0.01) and float(logit.std()) == pytest.approx(std, abs=0.01)
    assert (t > 0).all() and (t < 1).all()
    density = torch.distributions.Normal(mean, std).log_prob(logit).exp() / (t * (1 - t)).double()
    torch.testing.assert_close(weight.double(), 1 / density, atol=0, rtol=1e-3)
    low, high = torch.sigmoid(torch.tensor([mean - 2 * std, mean + 2 * std])).tolist()  # there no weight is large
    assert float((weight * ((t > low) & (t < high))).mean()) == pytest.approx(high - low, abs=0.01)
    assert torch.equal(t, sample_logit_normal(20_000, seeded(), mean=mean, std=std)[0])


def test_logit_normal_times_of_a_chain_are_its_nodes_within_the_range():
    t, _ = sample_logit_normal(5000, seeded(), timesteps=10, max_time=0.5)
    assert torch.isin(t, (torch.arange(5) + 1) / 10).all()
    assert (t == 0.3).float().mean() > (t == 0.1).float().mean()

from __future__ import annotations

import math

import pytest
import torch

from diffusion.noise import make_noise, seeded, truncated
from diffusion.samplers import sample_ddpm
from diffusion.schedules import make_continuous_schedule
from diffusion.timesteps import linear_grid


def at(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + step)


def test_noise_is_a_function_of_the_step():
    for noise in (seeded(at), truncated(at, 1.0)):
        like = torch.zeros(2, 3, 4)
        first = noise(0, like)
        assert first.shape == like.shape and first.dtype == like.dtype
        assert not torch.equal(noise(1, like), first)
        assert torch.equal(noise(0, like), first)


@pytest.mark.parametrize("bound", [0.3, 0.9, 2.0, 8.0])
def test_truncated_noise_is_the_normal_distribution_between_its_bounds(bound):
    eps = truncated(at, bound)(0, torch.zeros(200_000, dtype=torch.float64))
    assert eps.abs().max() <= bound
    inside = math.erf(bound / math.sqrt(2))
    redrawn = torch.randn(400_000, dtype=torch.float64, generator=at(7))
    redrawn = redrawn[redrawn.abs() <= bound]
    for x in (0.25, 0.5, 0.9):
        phi = (math.erf(x * bound / math.sqrt(2)) / inside) / 2 + 0.5
        assert float((eps <= x * bound).double().mean()) == pytest.approx(phi, abs=3e-3)
    assert float(eps.std()) == pytest.approx(float(redrawn.std()), rel=0.01)
    assert float(eps.mean()) == pytest.approx(0, abs=0.01)


def test_no_bound_is_standard_normal_noise():
    like = torch.zeros(5)
    for noise in (make_noise(at), make_noise(at, 0), truncated(at, math.inf)):
        assert torch.equal(noise(2, like), seeded(at)(2, like))
    assert torch.equal(make_noise(at, 0.9)(2, like), truncated(at, 0.9)(2, like))


def test_a_short_batch_gets_the_noise_of_a_full_batch():
    for noise in (make_noise(at, None, rows=6), make_noise(at, 0.5, rows=6)):
        assert torch.equal(noise(1, torch.zeros(2, 3)), noise(1, torch.zeros(6, 3))[:2])


def test_a_sampler_accepts_the_noise(gaussian, noise_at_start):
    schedule = make_continuous_schedule("cosine")
    out = sample_ddpm(gaussian.denoise(schedule), schedule, linear_grid(4), noise_at_start, truncated(at, 0.9))
    assert out.isfinite().all()


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_an_invalid_bound_is_an_error(bound):
    with pytest.raises(ValueError, match="use a positive number of standard deviations"):
        truncated(at, bound)

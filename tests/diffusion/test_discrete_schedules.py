from __future__ import annotations

import math

import pytest
import torch

from diffusion.discrete_schedules import DISCRETE_SCHEDULES, DiscreteSchedule, make_discrete_schedule
from diffusion.schedules import log_snr

DTYPES = [torch.float32, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.parametrize("name", DISCRETE_SCHEDULES)
@pytest.mark.parametrize("timesteps", [2, 3, 10, 1000, 4000])
@every_dtype
def test_the_nodes_of_a_chain_are_exact(name, timesteps, dtype):
    chain = make_discrete_schedule(name, timesteps)
    assert chain.timesteps == timesteps
    t = ((torch.arange(timesteps, dtype=torch.float64) + 1) / timesteps).to(dtype)
    torch.testing.assert_close(log_snr(chain(t)), chain.log_snr.to(dtype), atol=2e-5, rtol=0)
    alpha_bar = torch.cumprod(1 - DISCRETE_SCHEDULES[name](timesteps), 0)
    torch.testing.assert_close(chain(t).alpha.double() ** 2, alpha_bar, atol=1e-6, rtol=0)


def test_a_chain_is_exactly_clean_at_zero_and_linear_in_log_snr_between_nodes():
    chain = make_discrete_schedule("cosine", 10)
    assert chain(torch.tensor(0.0)) == (1.0, 0.0)
    between = log_snr(chain(torch.tensor(0.425, dtype=torch.float64)))
    torch.testing.assert_close(between, 0.75 * chain.log_snr[3] + 0.25 * chain.log_snr[4])
    # below the first node sigma is nearly proportional to t
    sigma = chain(torch.tensor([0.025, 0.05], dtype=torch.float64)).sigma
    torch.testing.assert_close(sigma[1] / sigma[0], torch.tensor(2.0, dtype=torch.float64), atol=0.05, rtol=0)


def test_betas_are_those_of_the_papers():
    linear = DISCRETE_SCHEDULES["linear"](1000)
    torch.testing.assert_close(linear[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))
    assert (DISCRETE_SCHEDULES["linear"](10) <= 0.999).all(), "uncapped, a short chain has negative variances"
    cosine = DISCRETE_SCHEDULES["cosine"](1000)
    assert cosine[-1] == 0.999
    torch.testing.assert_close(cosine[0], torch.tensor(4.128e-5, dtype=torch.float64), atol=1e-8, rtol=0)


def test_one_chain_works_with_several_dtypes():
    chain = DiscreteSchedule(DISCRETE_SCHEDULES["linear"](20))
    for dtype in (torch.float32, torch.float64, torch.float32):
        assert chain(torch.tensor(0.5, dtype=dtype)).alpha.dtype == dtype


def published(name: str, timesteps: int) -> list[float]:
    """Betas by the definitions of the papers' code, number by number."""
    scale = 1000 / timesteps
    curves = {
        "cosine": lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2,
        "sqrt": lambda t: 1 - math.sqrt(t + 0.0001),
        "trunc_cos": lambda t: math.cos((t + 0.1) / 1.1 * math.pi / 2) ** 2,
    }

    def line(start: float, end: float, n: int) -> list[float]:
        return [start + (end - start) * i / max(n - 1, 1) for i in range(n)]

    def ratios(f) -> list[float]:
        return [min(1 - f((i + 1) / timesteps) / f(i / timesteps), 0.999) for i in range(timesteps)]

    if name == "linear":
        return line(1e-4 * scale, 0.02 * scale, timesteps)
    if name == "trunc_lin":
        return line(1e-4 * scale + 0.01, 0.02 * scale + 0.01, timesteps)
    if name == "pw_lin":
        low = 1e-4 * scale
        return line(low + 0.01, low, 10) + line(low, 0.02 * scale, timesteps - 10)
    if name == "trunc_cos":
        return [1 - curves[name](0.0), *ratios(curves[name])[:-1]]
    if name == "warmup-decay":
        betas = ratios(curves["sqrt"])
        last = max(1, int(0.1 * timesteps))
        return betas[:-last] + line(betas[-last], 1e-4, last)
    return ratios(curves[name])


@pytest.mark.parametrize("name", DISCRETE_SCHEDULES)
@pytest.mark.parametrize("timesteps", [40, 200, 2000])
def test_every_chain_is_the_published_one(name, timesteps):
    expected = torch.tensor(published(name, timesteps), dtype=torch.float64)
    torch.testing.assert_close(DISCRETE_SCHEDULES[name](timesteps), expected, atol=1e-12, rtol=1e-9)


def test_the_sqrt_chain_has_the_values_of_diffuseq():
    chain = make_discrete_schedule("sqrt", 2000)
    first, last = chain(torch.tensor([1 / 2000, 1.0], dtype=torch.float64)).alpha ** 2
    assert float(DISCRETE_SCHEDULES["sqrt"](2000)[0]) == pytest.approx(0.01464, abs=1e-5)
    assert float(first) == pytest.approx(0.98536, abs=1e-5)
    assert math.sqrt(1 - float(first)) == pytest.approx(0.1210, abs=1e-4)
    assert float(last) == pytest.approx(2.0e-7, rel=0.02)


@pytest.mark.parametrize("name", DISCRETE_SCHEDULES)
@pytest.mark.parametrize("timesteps", [*range(2, 24), 100])
def test_chains_of_any_length_are_valid(name, timesteps):
    betas = DISCRETE_SCHEDULES[name](timesteps)
    assert betas.shape == (timesteps,) and betas.dtype == torch.float64
    assert ((betas > 0) & (betas <= 0.999)).all()
    assert (make_discrete_schedule(name, timesteps).log_snr.diff() < 0).all()

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusion.discrete_schedules import DISCRETE_SCHEDULES, make_discrete_schedule
from diffusion.noise_levels import power
from diffusion.schedules import (
    CLAMP,
    CONTINUOUS_SCHEDULES,
    broadcast_level,
    from_log_snr,
    log_snr,
    make_continuous_schedule,
    num_timesteps,
    scale_for_dimension,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "schedules.safetensors"
SCHEDULES = [make_continuous_schedule(name, scale) for name in CONTINUOUS_SCHEDULES for scale in (0.5, 1.0, 2.0)] + [
    make_discrete_schedule(name, timesteps) for name in DISCRETE_SCHEDULES for timesteps in (1, 2, 50, 1000)
]
DTYPES = [torch.float32, torch.float64]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def times(dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(0, 1, 201, dtype=torch.float64).to(dtype)


@every_schedule
@every_dtype
def test_variance_is_preserved_except_on_the_linear_path(schedule, dtype):
    level = schedule(times(dtype))
    assert level.alpha.dtype == level.sigma.dtype == dtype
    linear = getattr(schedule, "name", "") == "rectified_flow"
    total = level.alpha + level.sigma if linear else level.alpha**2 + level.sigma**2
    torch.testing.assert_close(total, torch.ones_like(total), atol=4 * torch.finfo(dtype).eps, rtol=0)
    assert linear or bool((power(level) == 1).all()), "exactly 1, so that dividing by it changes no bit"


@every_schedule
@every_dtype
def test_noise_never_falls_with_time(schedule, dtype):
    levels = log_snr(schedule(times(dtype)))
    assert not levels.isnan().any()
    assert (levels[1:] <= levels[:-1]).all()
    assert levels[0] > levels[-1] or num_timesteps(schedule) == 1


@every_schedule
def test_float32_agrees_with_float64_in_log_snr(schedule):
    t = torch.linspace(0.01, 1, 100)
    torch.testing.assert_close(log_snr(schedule(t)).double(), log_snr(schedule(t.double())), atol=2e-5, rtol=0)


@every_schedule
def test_shapes_are_preserved(schedule):
    for shape in ((), (3,), (3, 1, 1)):
        alpha, sigma = schedule(torch.full(shape, 0.5))
        assert alpha.shape == sigma.shape == shape


def test_half_precision_times_are_computed_in_float32():
    level = make_continuous_schedule("cosine")(torch.tensor([0.0, 0.5, 1.0], dtype=torch.bfloat16))
    assert level.alpha.dtype == torch.float32
    torch.testing.assert_close(level, make_continuous_schedule("cosine")(torch.tensor([0.0, 0.5, 1.0])))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_scale_shifts_the_clamped_log_snr(scale):
    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    for name in CONTINUOUS_SCHEDULES:
        shift = log_snr(make_continuous_schedule(name, scale)(t)) - log_snr(make_continuous_schedule(name)(t))
        torch.testing.assert_close(shift, torch.full_like(t, 2 * math.log(scale)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["cosine", "simple_linear", "sigmoid"])
def test_the_clamp_determines_both_ends(name):
    """1 / alpha(1) is the first thing that a sampler divides by."""
    for dtype in DTYPES:
        ends = log_snr(make_continuous_schedule(name, 0.5)(torch.tensor([0.0, 1.0], dtype=dtype)))
        expected = torch.tensor([CLAMP, -CLAMP], dtype=dtype) + 2 * math.log(0.5)
        torch.testing.assert_close(ends, expected, atol=2e-5, rtol=0)


def test_continuous_schedules_are_the_published_formulas():
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    s = torch.sigmoid
    start, end = torch.tensor(-3.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    published = {
        "cosine": torch.cos(math.pi / 2 * t) ** 2,
        "simple_linear": 1 - t,
        "beta_linear": torch.exp(-1e-4 - 10 * t**2),
        "sigmoid": (s(end) - s(6 * t - 3)) / (s(end) - s(start)),
        "sqrt": 1 - (t + 1e-4).sqrt(),
        "tan": 1 / (1 + (9 * torch.tan(math.pi / 2 * t)) ** 2),
        "rectified_flow": (1 - t) ** 2,
    }
    assert published.keys() == CONTINUOUS_SCHEDULES.keys()
    for name, alpha_bar in published.items():
        torch.testing.assert_close(make_continuous_schedule(name)(t).alpha ** 2, alpha_bar, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("d", [1.0, 3.0, 11.0])
def test_tan_d_is_set_by_the_scale(d):
    """alpha / sigma = 1 / (d tan(pi t / 2)), so with d = 1 it is the cosine schedule."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    level = make_continuous_schedule("tan", 9 / d)(t)
    torch.testing.assert_close(level.alpha / level.sigma, 1 / (d * torch.tan(math.pi / 2 * t)))
    torch.testing.assert_close(level, make_continuous_schedule("cosine", 1 / d)(t))


@pytest.mark.parametrize("dimension", [384, 4096, 64 * 768])
def test_the_scale_for_a_dimension_is_the_published_shift_of_time(dimension):
    """t -> a t / (1 + (a - 1) t) with a = sqrt(dimension / 4096), on the linear path."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    a = math.sqrt(dimension / 4096)
    shifted = make_continuous_schedule("rectified_flow", scale_for_dimension(dimension))(t)
    torch.testing.assert_close(shifted.sigma, a * t / (1 + (a - 1) * t))
    assert scale_for_dimension(4096) == 1


def test_sqrt_is_noisy_at_zero_and_clamped_at_one():
    for dtype in DTYPES:
        level = make_continuous_schedule("sqrt")(torch.tensor([0.0, 1.0], dtype=dtype))
        assert float(level.sigma[0]) == pytest.approx(0.1, abs=1e-6)
        assert float(log_snr(level)[1]) == pytest.approx(-CLAMP, abs=1e-4)


@pytest.mark.skipif(not GOLDEN.exists(), reason="tests/golden is not there")
def test_continuous_schedules_equal_the_recorded_ones():
    golden = load_file(GOLDEN)
    t = golden.pop("t")
    for key, alpha_bar in golden.items():
        name, scale = key.split(".scale_")
        torch.testing.assert_close(
            make_continuous_schedule(name, float(scale))(t).alpha ** 2, alpha_bar, atol=1e-6, rtol=0
        )


def test_log_snr_inverts_from_log_snr():
    lam = torch.linspace(-30, 30, 61, dtype=torch.float64)
    torch.testing.assert_close(log_snr(from_log_snr(lam)), lam)
    assert from_log_snr(torch.tensor(math.inf)) == (1.0, 0.0)


def test_broadcast_level_has_the_dtype_of_the_latents():
    z = torch.zeros(5, 1, 3)
    level = broadcast_level(make_continuous_schedule("cosine"), torch.rand(5, dtype=torch.float64), z)
    assert level.alpha.shape == (5, 1, 1) and level.alpha.dtype == z.dtype


@pytest.mark.parametrize(
    ("make", "argument", "message"),
    [
        (make_continuous_schedule, ("cosin",), "cosin"),
        (make_continuous_schedule, ("cosine", 0.0), "positive"),
        (make_continuous_schedule, ("cosine", math.nan), "positive"),
        (make_discrete_schedule, ("sigmoid", 10), "sigmoid"),
        (make_discrete_schedule, ("linear", 0), "1 or more"),
    ],
)
def test_an_invalid_schedule_is_a_one_line_error(make, argument, message):
    with pytest.raises(ValueError, match=message) as error:
        make(*argument)
    assert "\n" not in str(error.value)

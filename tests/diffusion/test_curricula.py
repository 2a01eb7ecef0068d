from __future__ import annotations

import math

import pytest

from diffusion import options
from diffusion.curricula import RESOLUTION, T_SCHEDULES, annealed_timesteps, t_max

every_name = pytest.mark.parametrize("name", T_SCHEDULES)


def test_the_flags_offer_the_curricula_there_are():
    choices = options.ProcessOptions.__dataclass_fields__["T_schedule"].metadata["choices"]
    assert set(choices) == set(T_SCHEDULES)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("normal", [1000, 1000, 1000, 1000, 1000, 1000]),
        ("linear", [200, 240, 400, 600, 960, 1000]),
        ("polynomial", [200, 202, 250, 400, 922, 1000]),
        ("cosine", [200, int(200 + 400 * (1 - math.cos(0.05 * math.pi))), 317, 600, 995, 1000]),
        ("unsmooth", [200, 200, 400, 600, 800, 1000]),
    ],
)
def test_the_range_widens_over_the_first_half(name, wanted):
    steps = [0, 5, 25, 50, 95, 100]
    assert [annealed_timesteps(name, step, 200, 1000) for step in steps] == wanted
    assert annealed_timesteps(name, 199, 200, 1000) == 1000


@every_name
@pytest.mark.parametrize("timesteps", [1, 3, 50, 1000])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_the_range_never_narrows_never_is_empty_and_ends_whole(name, timesteps, num_steps):
    ranges = [annealed_timesteps(name, step, num_steps, timesteps) for step in range(num_steps + 1)]
    assert ranges == sorted(ranges)
    assert ranges[0] >= 1 and ranges[-1] == timesteps


def test_the_power_bends_the_polynomial_alone():
    assert annealed_timesteps("polynomial", 50, 200, 1000, power=1) == annealed_timesteps("linear", 50, 200, 1000)
    assert annealed_timesteps("polynomial", 50, 200, 1000, power=4) == 250
    assert annealed_timesteps("cosine", 50, 200, 1000, power=4) == annealed_timesteps("cosine", 50, 200, 1000)


@every_name
def test_continuous_time_is_annealed_in_thousandths(name):
    for step in (0, 33, 100):
        assert t_max(name, step, 200) == annealed_timesteps(name, step, 200, RESOLUTION) / RESOLUTION
        assert t_max(name, step, 200, timesteps=50) == annealed_timesteps(name, step, 200, 50) / 50


def test_an_unknown_curriculum_is_refused():
    with pytest.raises(ValueError, match="stepwise"):
        t_max("stepwise", 0, 10)

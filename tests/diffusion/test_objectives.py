from __future__ import annotations

import pytest
import torch

from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.objectives import OBJECTIVES, TARGETS, resolve_objective, target, to_eps, to_v, to_x0
from diffusion.schedules import NoiseLevel, broadcast_level, make_continuous_schedule

every_objective = pytest.mark.parametrize("objective", TARGETS)


def example(dtype: torch.dtype, length: int = 4):
    generator = torch.Generator().manual_seed(1)
    x0, eps = (torch.randn(5, length, 3, generator=generator, dtype=dtype) for _ in range(2))
    t = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=dtype)
    level = broadcast_level(make_continuous_schedule("cosine"), t, x0)
    return x0, eps, level, level.alpha * x0 + level.sigma * eps


@every_objective
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_objective_makes_a_round_trip(objective, length, dtype):
    """Also at both ends of time, where one of the two parts is 1 / 1800 of z_t."""
    x0, eps, level, z_t = example(dtype, length)
    prediction = target(objective, x0, eps, level)
    tolerance = 1e4 * torch.finfo(dtype).eps
    torch.testing.assert_close(to_x0(objective, prediction, z_t, level), x0, atol=tolerance, rtol=0)
    torch.testing.assert_close(to_eps(objective, prediction, z_t, level), eps, atol=tolerance, rtol=0)
    v = level.alpha * eps - level.sigma * x0
    torch.testing.assert_close(to_v(objective, prediction, z_t, level), v, atol=tolerance, rtol=0)


@every_objective
def test_conversion_to_the_same_objective_is_the_identity(objective):
    _, eps, level, z_t = example(torch.float32)
    same = {"x0": to_x0, "eps": to_eps, "v": to_v}
    if objective not in same:
        pytest.skip("is no quantity that others are converted to")
    assert torch.equal(same[objective](objective, eps, z_t, level), eps)


@every_objective
def test_round_trips_on_the_linear_path(objective):
    """alpha^2 + sigma^2 is not 1 there."""
    x0, eps, _, _ = example(torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    level = broadcast_level(make_continuous_schedule("rectified_flow"), t, x0)
    z_t = level.alpha * x0 + level.sigma * eps
    prediction = target(objective, x0, eps, level)
    torch.testing.assert_close(to_x0(objective, prediction, z_t, level), x0)
    torch.testing.assert_close(to_eps(objective, prediction, z_t, level), eps)
    torch.testing.assert_close(to_v(objective, prediction, z_t, level), level.alpha * eps - level.sigma * x0)


@every_objective
def test_without_noise_x0_is_z(objective):
    """t = 0 of a chain: sigma = 0."""
    z_t = torch.randn(2, 3, 4)
    level = broadcast_level(make_discrete_schedule("linear", 10), torch.zeros(2), z_t)
    prediction = target(objective, z_t, torch.zeros_like(z_t), level)
    torch.testing.assert_close(to_x0(objective, prediction, z_t, level), z_t)


def test_targets_are_those_of_the_papers():
    x0, eps = torch.tensor(2.0), torch.tensor(3.0)
    level = NoiseLevel(torch.tensor(0.6), torch.tensor(0.8))
    said = {name: float(target(name, x0, eps, level)) for name in TARGETS}
    assert said == pytest.approx({"eps": 3.0, "x0": 2.0, "v": 0.6 * 3 - 0.8 * 2, "flow": 1.0, "eps_x0": 3.0})


def test_flag_names_and_symbols_mean_the_same():
    assert [resolve_objective(name) for name in OBJECTIVES] == list(TARGETS)
    assert list(OBJECTIVES) == ["pred_noise", "pred_x0", "pred_v", "pred_flow", "pred_noise_x0"]
    assert list(TARGETS) == ["eps", "x0", "v", "flow", "eps_x0"]
    assert [resolve_objective(name) for name in TARGETS] == list(TARGETS)
    with pytest.raises(ValueError, match="pred_v_dual"):
        resolve_objective("pred_v_dual")

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.objectives import TARGETS, target, to_x0
from diffusion.schedules import log_snr, make_continuous_schedule
from diffusion.weighting import MIN_SNR, error_weight, make_weighting, min_snr_weight, p2_weight, x0_error_weight

SCHEDULE = make_continuous_schedule("cosine")
FLOW = make_continuous_schedule("rectified_flow")


def test_p2_weights_are_those_of_the_paper():
    t = torch.tensor([0.0, 0.3, 0.8], dtype=torch.float64)
    alpha, sigma = SCHEDULE(t)
    torch.testing.assert_close(p2_weight(SCHEDULE, t, 1.5), (1 + (alpha / sigma) ** 2) ** -1.5)
    assert p2_weight(SCHEDULE, t, 0.0).tolist() == [1.0] * 3
    assert p2_weight(make_discrete_schedule("linear", 10), torch.zeros(1), 1.0).tolist() == [0.0], "clean: infinite snr"


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_paper(gamma):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    snr = log_snr(SCHEDULE(t)).exp()
    least = snr.clamp(max=gamma)
    for objective, weight in {"x0": least, "eps": least / snr, "v": least / (snr + 1)}.items():
        torch.testing.assert_close(min_snr_weight(SCHEDULE, t, objective, gamma), weight)
    torch.testing.assert_close(min_snr_weight(SCHEDULE, t, "pred_v", gamma), least / (snr + 1))


@given(t=st.floats(0.001, 0.999), gamma=st.floats(0.1, 20), schedule=st.sampled_from([SCHEDULE, FLOW]))
def test_min_snr_weights_the_error_of_x0_equally_for_all_objectives(t, gamma, schedule):
    """An error of one in x0 has the loss min(snr, gamma) for every objective."""
    time = torch.tensor([t], dtype=torch.float64)
    level = schedule(time)
    x0, eps = torch.tensor([0.4], dtype=torch.float64), torch.tensor([-1.3], dtype=torch.float64)
    z_t = level.alpha * x0 + level.sigma * eps
    for objective in MIN_SNR:
        said = target(objective, x0, eps, level) + 1e-3
        error = (to_x0(objective, said, z_t, level) - x0) ** 2
        weighted = min_snr_weight(schedule, time, objective, gamma) * 1e-6
        torch.testing.assert_close(weighted, log_snr(level).exp().clamp(max=gamma) * error, atol=0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("objective", MIN_SNR)
def test_both_ends_are_finite(objective, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    for schedule in (
        make_discrete_schedule("sqrt", 10),
        make_continuous_schedule("cosine", 1e-6),
        make_continuous_schedule("cosine", 1e6),
    ):
        weight = min_snr_weight(schedule, ends, objective)
        assert weight.dtype == dtype and weight.isfinite().all() and (weight >= 0).all()
    clean, noisy = min_snr_weight(make_discrete_schedule("sqrt", 10), ends, objective).tolist()
    assert clean == {"eps": 0.0, "eps_x0": 0.0, "x0": 5.0, "v": 0.0, "flow": 0.0}[objective]
    expected = {"eps": 1.0, "eps_x0": 0.0, "x0": 0.0, "v": 0.0, "flow": 0.0}[objective]
    assert noisy == pytest.approx(expected, abs=1e-3)


def test_weightings_by_name():
    t = torch.rand(5)
    assert make_weighting("none", "pred_v")(SCHEDULE, t).tolist() == [1.0] * 5
    assert torch.equal(make_weighting("min_snr", "pred_v", 3.0)(SCHEDULE, t), min_snr_weight(SCHEDULE, t, "v", 3.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("snr", "v"), "snr"), (("min_snr", "v", 0.0), "gamma"), (("none", "score"), "score")],
)
def test_an_invalid_weighting_is_a_one_line_error(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        make_weighting(*arguments)
    assert "\n" not in str(error.value)


@given(t=st.floats(0.1, 0.9), schedule=st.sampled_from([SCHEDULE, FLOW]))
def test_a_weighting_measures_the_error_of_another_quantity(t, schedule):
    """The squared error of what is named, for every objective: predicted x0 with the loss on v or the flow, ..."""
    time = torch.tensor([t], dtype=torch.float64)
    level = schedule(time)
    x0, eps = torch.tensor([0.4], dtype=torch.float64), torch.tensor([-1.3], dtype=torch.float64)
    z_t = level.alpha * x0 + level.sigma * eps
    for objective in TARGETS:
        said = target(objective, x0, eps, level) + 1e-3
        x0_hat = to_x0(objective, said, z_t, level)
        eps_hat = (z_t - level.alpha * x0_hat) / level.sigma
        for of in ("x0", "v", "flow"):
            error = (target(of, x0_hat, eps_hat, level) - target(of, x0, eps, level)) ** 2
            torch.testing.assert_close(error_weight(schedule, time, objective, of) * 1e-6, error, atol=0, rtol=1e-6)
        exact = x0_error_weight(schedule, time, objective) * 1e-6
        torch.testing.assert_close(exact, (x0_hat - x0) ** 2, atol=0, rtol=1e-6)


def test_x0_predicted_with_the_loss_of_the_flow_is_that_of_elf():
    """1 / t^2 on the linear path (they count time from noise), with t at least 0.05."""
    t = torch.tensor([1e-4, 0.05, 0.3, 1.0], dtype=torch.float64)
    weight = make_weighting("flow", "pred_x0")(FLOW, t)
    torch.testing.assert_close(weight, 1 / t.clamp(min=0.05) ** 2, atol=0, rtol=2e-3)
    assert make_weighting("v", "pred_v")(SCHEDULE, t[1:]).tolist() == [1.0] * 3


@pytest.mark.parametrize("of", ["x0", "v", "flow"])
def test_factors_of_errors_are_limited(of):
    ends = torch.tensor([0.0, 1e-5, 1 - 1e-6, 1.0])
    for schedule in (SCHEDULE, FLOW, make_discrete_schedule("sqrt", 10)):
        for objective in TARGETS:
            weight = error_weight(schedule, ends, objective, of)
            assert bool(weight.isfinite().all()) and float(weight.max()) <= 400 * 1.02


def test_every_objective_has_a_min_snr_weight():
    assert set(MIN_SNR) == set(TARGETS)

"""Sampling on another schedule or scale than that of training, with the ideal network: every denoiser, every pair."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from diffusion.denoisers import get_time_input
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.noise_levels import NoiseLevel
from diffusion.objectives import OBJECTIVES, target
from diffusion.options import ProcessOptions, SamplingOptions
from diffusion.schedules import CONTINUOUS_SCHEDULES, log_snr, make_continuous_schedule
from diffusion.timesteps import training_time
from model import DENOISERS
from pipelines.builders.diffusion_process import DiffusionProcess, make_process
from utils.errors import UserError

MEAN, STD = 1.0, 0.5
SCALES = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0))  # of training, of sampling
BY_TIME_INPUT = sorted({row.time_input: name for name, row in DENOISERS.items()}.values())  # a denoiser of each kind
STEPS = 24
LINEAR = "rectified_flow"  # the only path that does not preserve the variance


def process_of(variant, objective, train, sampling, scales=(1.0, 1.0)) -> DiffusionProcess:
    return make_process(
        ProcessOptions(objective=objective, train_schedule=train, scale=scales[1]),
        SamplingOptions(sampler="dpmpp", sampling_timesteps=STEPS, time_grid="log_snr", sampling_schedule=sampling),
        variant,
        trained_scale=scales[0],
    )


def ideal_network(process: DiffusionProcess):
    """The best prediction for x0 ~ N(MEAN, STD^2) of a network that knows only z and its time input."""

    def network(z, time, x0_prev):
        level = NoiseLevel(time.sqrt(), (1 - time).sqrt())
        if process.options.train_schedule == LINEAR:
            level = NoiseLevel(time.sqrt(), 1 - time.sqrt())
        if process.time_input == "index":
            level = process.train_schedule(time)
        alpha, sigma = (x.to(z.dtype).view(-1, 1, 1) for x in level)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (z - alpha * MEAN)
        eps = sigma / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)
        return target(process.options.objective, x0, eps, NoiseLevel(alpha, sigma))

    return network


def sample(process: DiffusionProcess, network=None) -> torch.Tensor:
    """400 samples from the quantiles of the noise; network None: an oracle that knows the sampling schedule."""
    quantiles = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
    oracle = replace(process, train_schedule=process.sampling_schedule)
    denoise = (oracle if network is None else process).make_denoise(network or ideal_network(oracle))
    return process.sampler(denoise, process.sampling_schedule, process.grid(STEPS), quantiles[:, None, None])


@pytest.mark.parametrize("variant", BY_TIME_INPUT)
@pytest.mark.parametrize("train", CONTINUOUS_SCHEDULES)
def test_the_ideal_network_samples_its_data_on_every_schedule(variant, train):
    """Its samples are those of the ideal denoiser of the sampling schedule, whatever schedule it was trained on."""
    for sampling, scales in product(CONTINUOUS_SCHEDULES, SCALES):
        if (sampling == LINEAR) != (train == LINEAR):
            with pytest.raises(UserError, match="leave --sampling_schedule out"):
                process_of(variant, "pred_v", train, sampling, scales)
            continue
        process = process_of(variant, "pred_v", train, sampling, scales)
        x0, case = sample(process, ideal_network(process)), (sampling, scales)
        assert abs(float(x0.mean()) - MEAN) < 0.02, case
        if sampling != "sqrt":  # it ends at sigma 0.1, where the mean of x0 given z is narrower than x0
            assert abs(float(x0.std()) - STD) < (0.05 if train == "sqrt" else 0.02), case
        if train != "sqrt":  # nor has its network ever seen less noise
            torch.testing.assert_close(
                x0, sample(process), atol=5e-3, rtol=0, msg=lambda text, case=case: f"{case} {text}"
            )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_samples_the_same_on_another_schedule(objective):
    for train, sampling in (("cosine", "beta_linear"), ("simple_linear", "cosine"), ("sigmoid", "sqrt")):
        process = process_of("states", objective, train, sampling)
        x0 = sample(process, ideal_network(process))
        torch.testing.assert_close(x0, sample(process), atol=5e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("train", CONTINUOUS_SCHEDULES)
def test_the_training_time_has_the_noise_of_the_sampling_time(train, dtype):
    schedule = make_continuous_schedule(train)
    low, high = (float(log_snr(schedule(torch.tensor(t, dtype=torch.float64)))) for t in (1.0, 0.0))
    for sampling, scale in product(CONTINUOUS_SCHEDULES, (1.0, 0.5, 3.0)):
        other, t = make_continuous_schedule(sampling, scale), torch.linspace(0, 1, 101, dtype=dtype)
        found = training_time(schedule, other, t)
        assert found.shape == t.shape and found.dtype == dtype and bool(((found >= 0) & (found <= 1)).all())
        level = log_snr(other(t.double())).clamp(low, high)
        # near its ends a time in float32 holds the noise level less precisely
        inside = (level > low + 0.1) & (level < high - 0.1) & (found > 1e-4) & (found < 1 - 1e-3)
        torch.testing.assert_close(log_snr(schedule(found.double()))[inside], level[inside], atol=2e-3, rtol=0)


def test_the_same_schedule_hands_over_the_time_itself():
    t = torch.rand(5)
    for name, scale in product(CONTINUOUS_SCHEDULES, (1.0, 0.5)):
        assert training_time(make_continuous_schedule(name, scale), make_continuous_schedule(name, scale), t) is t
    chain = make_discrete_schedule("linear", 10)
    assert training_time(chain, chain, t) is t
    process = process_of("states", "pred_v", "cosine", None)
    assert torch.equal(process.sampling_time_input(t), t)


def test_a_network_of_a_chain_gets_the_step_of_equal_noise():
    chain, cosine = make_discrete_schedule("linear", 1000), make_continuous_schedule("cosine")
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    index = get_time_input(cosine, t, "index", train_schedule=chain)
    torch.testing.assert_close(log_snr(chain(index + 1 / 1000)), log_snr(cosine(t)), atol=1e-4, rtol=0)


def test_levels_that_training_never_had_are_named(capsys):
    process_of("states", "pred_v", "sqrt", "cosine")
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and note.startswith("note: ") and "--sampling_schedule" in note
    for train, sampling, scales in (("cosine", None, (1, 1)), ("cosine", "sqrt", (1, 1)), ("cosine", None, (1, 0.5))):
        process_of("states", "pred_v", train, sampling, scales)
    process_of("latent", "pred_v", "beta_linear", "cosine")
    assert not capsys.readouterr().err

from __future__ import annotations

import pytest
import torch

from diffusion.absorbing import (
    AbsorbingNoise,
    absorbing_shift,
    mask_positions,
    mask_probability,
    remask_hook,
    shift_sampler,
)
from diffusion.denoisers import make_denoise
from diffusion.guidance import with_known_positions
from diffusion.loss import LossConfig, corrupt, denoising_loss
from diffusion.objectives import TARGETS, target
from diffusion.sampler_steps import compose_hooks
from diffusion.samplers import SAMPLERS, sample_ddim, sample_ddpm, sample_dpmpp_2m
from diffusion.schedules import broadcast_level, make_continuous_schedule
from diffusion.timesteps import linear_grid
from diffusion.token_rejection import StableTokenRejection

COSINE = make_continuous_schedule("cosine")
STATE = torch.tensor([2.0, -1.0, 0.5, 4.0], dtype=torch.float64)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def rows(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def at(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(50 + step)


def test_noise_has_the_state_as_its_mean_at_generated_positions_only():
    mask = torch.tensor([[False, True, True], [False, False, True]])
    shift = absorbing_shift(STATE, mask)
    assert torch.equal(shift[mask], STATE.expand(3, 4)) and not shift[~mask].any()
    assert absorbing_shift(STATE).shape == (1, 1, 4)
    x0, eps = rows(0, 2, 3, 4), rows(1, 2, 3, 4)
    for t in (0.0, 0.4, 1.0):
        level = broadcast_level(COSINE, torch.full((2,), t, dtype=torch.float64), x0)
        published = level.alpha * (x0 - shift) + level.sigma * eps + shift
        torch.testing.assert_close(corrupt(x0, eps, level, AbsorbingNoise(STATE, shift)), published)
    torch.testing.assert_close(corrupt(x0, eps, level, AbsorbingNoise(STATE, shift)), eps + shift, atol=1e-2, rtol=0)


@pytest.mark.parametrize("objective", TARGETS)
def test_a_perfect_network_finds_x0_under_a_shift(objective):
    x0, eps, t = rows(0, 3, 2, 4), rows(1, 3, 2, 4), torch.tensor([0.05, 0.5, 0.99], dtype=torch.float64)
    level, shift = broadcast_level(COSINE, t, x0), absorbing_shift(STATE)
    said = target(objective, x0, eps, level)
    denoise = make_denoise(lambda z, time, x0_prev: said, objective, COSINE, shift=shift)
    torch.testing.assert_close(denoise(corrupt(x0, eps, level, AbsorbingNoise(STATE, shift)), t, None), x0)


@pytest.mark.parametrize("objective", TARGETS)
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_perfect_network_has_no_loss_where_positions_are_replaced(objective, rate):
    """Its estimates are of x0 at the z that it gets, with the state in place of some positions and without."""
    x0, eps, t = rows(0, 3, 2, 4), rows(1, 3, 2, 4), torch.tensor([0.05, 0.5, 0.99], dtype=torch.float64)
    level = broadcast_level(COSINE, t, x0)
    mask = torch.tensor([[True, True], [False, True], [True, True]])
    noise = AbsorbingNoise.of(STATE, mask, torch.zeros(3, 2, dtype=torch.float64), rate)
    z = corrupt(x0, eps, level, noise)
    assert torch.equal(z[mask], STATE.expand(5, 4)) == (rate > 0)
    made = (z - (1 - level.alpha) * noise.shift - level.alpha * x0) / level.sigma
    said = target(objective, x0, made, level)
    config = LossConfig(COSINE, objective)
    result = denoising_loss(lambda _: lambda *_: said, x0, t, eps, config, mask=mask, absorbing=noise, with_x0_hat=True)
    assert float(result.loss.max()) < 1e-18
    torch.testing.assert_close(result.x0_hat, x0)


@every_sampler
def test_initial_and_intermediate_z_have_the_distribution_of_training(sampler):
    """With x0 known, the input of the network at t is alpha (x0 - m) + sigma eps + m, from t = 1 on."""
    x0 = torch.tensor([0.7, 0.0, -1.0, 2.0], dtype=torch.float64).expand(4000, 1, 4)
    shown = []

    def denoise(z, t, x0_prev):
        shown.append((float(t[0]), z.mean((0, 1)), z.std((0, 1))))
        return x0

    def noise(step, like):
        return torch.randn(like.shape, dtype=like.dtype, generator=at(step))

    shift = absorbing_shift(STATE)
    out = shift_sampler(sampler, shift)(denoise, COSINE, linear_grid(6), rows(0, 4000, 1, 4), noise)
    torch.testing.assert_close(out, x0)
    for t, mean, std in shown:
        alpha, sigma = COSINE(torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(mean, alpha * (x0[0, 0] - STATE) + STATE, atol=0.1, rtol=0)
        if sampler is not sample_ddpm:  # its large variance is that of unit Gaussian data
            torch.testing.assert_close(std, sigma.expand(4), atol=0.05, rtol=0.05)


def test_the_solver_under_a_shift_is_the_solver_of_shifted_data(gaussian, noise_at_start):
    """E[x0 | z] of data x0 is m + E[y0 | z - m] of data y0 = x0 - m."""
    moved = type(gaussian)(gaussian.mean - STATE, gaussian.std)
    inner = moved.denoise(COSINE)

    def denoise(z, t, x0_prev):
        return STATE + inner(z - STATE, t)

    times = linear_grid(12)
    for sampler in (sample_ddim, sample_dpmpp_2m):
        ours = shift_sampler(sampler, absorbing_shift(STATE))(denoise, COSINE, times, noise_at_start)
        torch.testing.assert_close(ours, STATE + sampler(inner, COSINE, times, noise_at_start))


@every_sampler
def test_known_positions_are_never_shifted(sampler):
    value, known = rows(3, 2, 3, 4), torch.tensor([[True, True, False]] * 2)
    shown, x0_prevs = [], []

    def network(z, t, x0_prev):
        shown.append(z)
        x0_prevs.append(x0_prev)
        return torch.tanh(z)

    z, corrected = rows(4, 2, 3, 4), []

    def step_hook(z, x0, mean, std, t, s, step):
        corrected.append((z, x0, mean))
        return z

    sampler = shift_sampler(sampler, absorbing_shift(STATE, ~known))
    out = sampler(
        with_known_positions(network, value, known), COSINE, linear_grid(4), z, lambda step, like: 0 * like, step_hook
    )
    assert all(torch.equal(x[known], value[known]) for x in (*shown, out))
    torch.testing.assert_close(shown[0][~known], z[~known] + STATE)
    assert x0_prevs[0] is None and all(torch.equal(x[known], value[known]) for x in x0_prevs[1:])
    assert all(torch.equal(x0[known], value[known]) for _, x0, _ in corrected)
    torch.testing.assert_close(corrected[-1][0], out)


def test_discrete_noise_replaces_whole_positions_with_its_probability():
    z_t, uniform = rows(0, 2, 20_000, 4), torch.rand(2, 20_000, generator=at(0))
    level = broadcast_level(COSINE, torch.tensor([0.2, 0.9], dtype=torch.float64), z_t)
    probability = mask_probability(level, 0.5)
    torch.testing.assert_close(probability, 0.5 * (1 - level.alpha.flatten() ** 2).sqrt())
    mask = torch.arange(20_000).remainder(2).bool().expand(2, -1)
    out = mask_positions(z_t, STATE, probability, uniform, mask)
    gone = (out != z_t).any(-1)
    assert torch.equal(out[gone], STATE.expand(int(gone.sum()), 4)) and torch.equal(out[~gone], z_t[~gone])
    assert not gone[~mask].any()
    torch.testing.assert_close(2 * gone.double().mean(1), probability, atol=0.015, rtol=0)
    assert torch.equal(mask_positions(z_t, STATE, 0 * probability, uniform), z_t)


def test_remasking_follows_the_noise_of_a_step():
    z = rows(1, 2, 20_000, 4)
    step_hook = remask_hook(STATE, 0.5, at, mask=torch.tensor([[True], [False]]).expand(2, 20_000))

    def step(std: float, s: float = 0.5):
        return step_hook(z, z, z, torch.tensor(std), torch.tensor(0.6), torch.tensor(s), 3)

    gone = (step(0.4) == STATE).all(-1)
    assert float(gone[0].double().mean()) == pytest.approx(0.2, abs=0.01) and not gone[1].any()
    assert torch.equal(step(0.4), step(0.4)), "a function of the step"
    assert torch.equal(step(0.0), z) and torch.equal(step(0.4, s=0.0), z)


def grid_points(x):
    return x.round()


def test_rejected_positions_are_not_rounded_and_get_no_noise():
    raw = torch.tensor([[[0.2], [1.3], [2.4]]])
    stability = StableTokenRejection(1.0, at)
    denoise = stability.clamp_x0(lambda z, t, x0_prev: raw, grid_points)
    t, z, mean = torch.ones(1), torch.full((1, 3, 1), 9.0), torch.full((1, 3, 1), 5.0)
    arguments = (None, mean, torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.5), 0)
    first = denoise(z, t, None)
    assert torch.equal(first, raw.round()) and torch.equal(stability.step_hook(z, *arguments), z)
    raw = torch.tensor([[[0.3], [1.9], [2.2]]])  # the middle token changes
    second = denoise(z, t, first)
    assert torch.equal(second, torch.tensor([[[0.3], [2.0], [2.2]]]))
    assert torch.equal(stability.step_hook(z, *arguments), torch.tensor([[[5.0], [9.0], [5.0]]]))
    again = denoise(z, t, None)
    assert torch.equal(again, raw.round()), "the state is reset when sampling starts again"


def test_the_rejection_probability_falls_with_t():
    stability = StableTokenRejection(0.8, at)
    x = torch.full((2, 20_000, 1), 0.3)
    denoise = stability.clamp_x0(lambda z, t, x0_prev: x, grid_points)
    t = torch.tensor([1.0, 0.25])
    out = denoise(x, t, denoise(x, t, None))
    share = (out == x).double().mean((1, 2))
    torch.testing.assert_close(share, torch.tensor([0.8, 0.2]).double(), atol=0.01, rtol=0)


@every_sampler
def test_all_parts_combined_with_any_sampler(sampler):
    """State, discrete noise, rejection, rounding, known positions, with any sampler; rates of 0 are plain rounding."""
    value, known = rows(3, 2, 3, 4), torch.tensor([[True, False, False]] * 2)
    shift, z = absorbing_shift(STATE, ~known), rows(4, 2, 3, 4)

    def run(rate: float):
        stability = StableTokenRejection(rate, at)
        inner = make_denoise(lambda z, time, x0_prev: torch.tanh(z), "v", COSINE, shift=shift)
        denoise = with_known_positions(stability.clamp_x0(inner, grid_points), value, known)
        step_hook = compose_hooks(stability.step_hook, remask_hook(STATE, rate, at, ~known), None)
        return shift_sampler(sampler, shift)(
            denoise, COSINE, linear_grid(6), z, lambda step, like: 0.5 + 0 * like, step_hook
        )

    inner = make_denoise(lambda z, time, x0_prev: torch.tanh(z), "v", COSINE, shift=shift)
    plain = with_known_positions(lambda z, t, x0_prev: inner(z, t, x0_prev).round(), value, known)
    expected = shift_sampler(sampler, shift)(plain, COSINE, linear_grid(6), z, lambda step, like: 0.5 + 0 * like)
    assert torch.equal(run(0.0), expected)
    out = run(0.9)
    assert out.isfinite().all() and torch.equal(out[known], value[known])
    assert compose_hooks() is None and compose_hooks(None) is None


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_an_invalid_rejection_rate_is_an_error(rate):
    with pytest.raises(ValueError, match="probability"):
        StableTokenRejection(rate, at)

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.denoisers import clamp_x0, get_time_input, make_denoise, project_x0
from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.guidance import classifier_free_guided, with_known_positions
from diffusion.objectives import TARGETS, target
from diffusion.samplers import sample_ddim, sample_ddpm
from diffusion.schedules import broadcast_level, make_continuous_schedule
from diffusion.timesteps import linear_grid

SCHEDULE = make_continuous_schedule("cosine")
T = torch.tensor([0.05, 0.5, 1.0])


def rows(seed: int, count: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6))


@pytest.mark.parametrize("objective", TARGETS)
def test_a_perfect_network_of_any_objective_finds_x0(objective):
    x0, eps = rows(1, dtype=torch.float64), rows(2, dtype=torch.float64)
    t = T.double()
    level = broadcast_level(SCHEDULE, t, x0)
    prediction = target(objective, x0, eps, level)
    denoise = make_denoise(lambda z, time, x0_prev: prediction, objective, SCHEDULE)
    torch.testing.assert_close(denoise(level.alpha * x0 + level.sigma * eps, t, None), x0)


def test_the_estimate_has_the_dtype_of_z():
    denoise = make_denoise(lambda z, time, x0_prev: z.bfloat16() * time[:, None, None].bfloat16(), "v", SCHEDULE)
    assert denoise(rows(1), T.double(), None).dtype == torch.float32


def test_time_input_alpha_bar_is_independent_of_the_schedule():
    assert torch.equal(get_time_input(SCHEDULE, T), SCHEDULE(T).alpha ** 2)


def test_time_input_index_is_the_integer_of_the_first_release():
    chain = make_discrete_schedule("linear", 1000)
    t = (torch.arange(1000) + 1) / 1000
    torch.testing.assert_close(1000 * get_time_input(chain, t, "index"), torch.arange(1000.0), atol=1e-4, rtol=0)
    short = make_discrete_schedule("linear", 10)
    torch.testing.assert_close(
        1000 * get_time_input(short, torch.tensor([0.1, 1.0]), "index"), torch.tensor([0.0, 900.0])
    )
    assert torch.equal(get_time_input(SCHEDULE, T, "index"), T)
    torch.testing.assert_close(get_time_input(SCHEDULE, T, "index", timesteps=1000), T - 0.001)
    with pytest.raises(ValueError, match="beta"):
        get_time_input(SCHEDULE, T, "beta")


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("weight", [0.0, 2.0, 7.5])
def test_guidance_gives_the_same_result_in_every_objective(objective, weight):
    """Mixing the network's outputs, then solving for x0, equals mixing the two x0."""
    z, t = rows(3, dtype=torch.float64), T.double()
    f = small_network().double()
    conditional, unconditional = f(z), f(z + 1)

    def network_2b(z2, time, x0_prev):
        assert torch.equal(z2[:3], z2[3:]) and torch.equal(time[:3], time[3:])
        return torch.cat([conditional, unconditional])

    mixed_estimates = classifier_free_guided(make_denoise(network_2b, objective, SCHEDULE), weight)(z, t, None)
    mixed_outputs = weight * conditional + (1 - weight) * unconditional
    torch.testing.assert_close(
        mixed_estimates, make_denoise(lambda *_: mixed_outputs, objective, SCHEDULE)(z, t, None), atol=1e-9, rtol=1e-9
    )


def test_guidance_weight_one_is_bit_identical_to_no_guidance():
    z, f = rows(3), small_network()
    plain = make_denoise(lambda z, time, x0_prev: f(z), "v", SCHEDULE)
    both = classifier_free_guided(
        lambda z, t, x0_prev: torch.cat([plain(z[:3], t[:3], None), plain(z[3:] + 1, t[3:], None)]), 1.0
    )
    assert torch.equal(both(z, T, None), plain(z, T, None))


def test_guidance_passes_the_same_previous_estimate_to_both_halves():
    def denoise_2b(z, t, x0_prev):
        assert x0_prev is None or torch.equal(x0_prev[:3], x0_prev[3:])
        return z if x0_prev is None else x0_prev

    prev = rows(5)
    torch.testing.assert_close(classifier_free_guided(denoise_2b, 2.0)(rows(4), T, prev), prev)
    torch.testing.assert_close(classifier_free_guided(denoise_2b, 2.0)(rows(4), T, None), rows(4))


def test_project_x0_projects_every_estimate_and_the_sample():
    def sphere(x):
        return x * 6**0.5 / x.norm(dim=-1, keepdim=True)

    f = small_network()
    shown = []

    def network(z, time, x0_prev):
        shown.append(x0_prev)
        return f(z)

    denoise = project_x0(make_denoise(network, "v", SCHEDULE), sphere)
    for sampler in (sample_ddpm, sample_ddim):
        shown.clear()
        out = sampler(denoise, SCHEDULE, linear_grid(4), rows(6))
        assert shown[0] is None
        for x in (*shown[1:], out):
            torch.testing.assert_close(x.norm(dim=-1), torch.full((3, 4), 6**0.5))


def test_clamp_x0_projects_only_in_its_range_of_times():
    z, t = rows(3, count=4), torch.tensor([1.0, 0.3, 0.29, 0.0])
    denoise = clamp_x0(lambda z, t, x0_prev: z, torch.sign, from_t=0.3)
    out = denoise(z, t, None)
    assert torch.equal(out[0], z[0]) and torch.equal(out[1:], z[1:].sign())
    early = clamp_x0(lambda z, t, x0_prev: z, torch.sign, until_t=0.3)(z, t, None)
    assert torch.equal(early[:2], z[:2].sign()) and torch.equal(early[2:], z[2:])
    assert torch.equal(clamp_x0(lambda z, t, x0_prev: z, torch.sign)(z, t, None), z.sign())


def test_clamp_x0_composes_with_guidance_and_known_positions():
    """network -> to_x0 -> guidance -> projection -> anchor, as every composing program builds it."""
    f, value = small_network(), rows(7)
    mask = torch.tensor([[True, False, False, False]] * 3)
    seen = []

    def sign(x):
        seen.append(x)
        return x.sign()

    inner = classifier_free_guided(lambda z, t, x0_prev: torch.cat([f(z[:3]), f(z[3:] + 1)]), 2.0)
    denoise = with_known_positions(clamp_x0(inner, sign, from_t=0.5), value, mask)
    z = rows(8)
    shown = torch.where(mask[..., None], value, z)
    mixed = 2 * f(shown) - f(shown + 1)
    torch.testing.assert_close(denoise(z, torch.full((3,), 0.4), None)[~mask], mixed.sign()[~mask])
    torch.testing.assert_close(seen[-1], mixed)
    torch.testing.assert_close(denoise(z, torch.full((3,), 0.6), None)[~mask], mixed[~mask])
    assert torch.equal(denoise(z, torch.full((3,), 0.4), None)[mask], value[mask])


def test_known_positions_are_clean_in_input_and_output():
    value = rows(7)
    mask = torch.tensor([[True, True, False, False]] * 2 + [[False] * 4])
    f, shown = small_network(), []

    def network(z, time, x0_prev):
        shown.append(z)
        return f(z)

    out = sample_ddpm(
        with_known_positions(make_denoise(network, "x0", SCHEDULE), value, mask), SCHEDULE, linear_grid(3), rows(8)
    )
    for x in (*shown, out):
        assert torch.equal(x[mask], value[mask])
    assert not torch.equal(out[~mask], value[~mask])

"""A student's step: what it is taught takes it exactly where its teacher went."""

from __future__ import annotations

import pytest
import torch

from diffusion.ddim_maps import ddim_step, ddim_target_x0, eps_from_x0
from diffusion.loss import corrupt
from diffusion.samplers import sample_ddim, sample_dpmpp_2m
from diffusion.schedules import broadcast_level, make_continuous_schedule
from diffusion.timesteps import make_grid

COSINE = make_continuous_schedule("cosine")


def rows(*t):
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("name", ["cosine", "simple_linear", "sigmoid"])
@pytest.mark.parametrize("t, s", [(1.0, 0.75), (0.5, 0.25), (0.9, 0.1), (0.3, 0.29)])
def test_the_target_of_a_jump_leads_where_it_was_to_lead(name, t, s):
    schedule = make_continuous_schedule(name)
    z, z_then = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level_t, level_s = broadcast_level(schedule, rows(t, t, t), z), broadcast_level(schedule, rows(s, s, s), z)
    x0 = ddim_target_x0(z, z_then, level_t, level_s)
    torch.testing.assert_close(ddim_step(z, x0, level_t, level_s), z_then, atol=1e-7, rtol=1e-7)


def test_a_jump_is_a_step_of_ddim():
    z = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.8, 0.3], dtype=torch.float64)
    at, to = (broadcast_level(COSINE, t.expand(3), z) for t in times)
    found = sample_ddim(lambda z, t, x0_prev: torch.tanh(z), COSINE, times, z)
    torch.testing.assert_close(ddim_step(z, torch.tanh(z), at, to), found)


def test_noise_in_undoes_diffuse():
    x0, eps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    level = broadcast_level(COSINE, rows(0.2, 0.5, 1.0), x0)
    torch.testing.assert_close(eps_from_x0(corrupt(x0, eps, level), x0, level), eps)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_student_that_has_learned_all_ends_where_its_teacher_does(steps):
    """Two clusters, whose best estimate is known: few steps of DDIM with it end elsewhere, the student's do not."""

    def best(z, t, x0_prev=None):  # E[x0 | z] of x0 = +-1, equally likely
        level = broadcast_level(COSINE, t, z)
        return torch.tanh(level.alpha * z / level.sigma**2)

    z = torch.randn(500, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    coarse, fine = make_grid("uniform", COSINE, steps), make_grid("uniform", COSINE, 64)
    taught, teacher = z, z
    for k in range(steps):
        t, s = coarse[k], coarse[k + 1]
        walk = fine[(fine <= t + 1e-9) & (fine >= s - 1e-9)]
        teacher = sample_dpmpp_2m(best, COSINE, walk, teacher)
        goal = sample_dpmpp_2m(best, COSINE, walk, taught)
        level_t, level_s = (broadcast_level(COSINE, x.expand(500), z) for x in (t, s))
        taught = goal if s == 0 else ddim_step(taught, ddim_target_x0(taught, goal, level_t, level_s), level_t, level_s)
    torch.testing.assert_close(taught, teacher, atol=1e-6, rtol=1e-6)
    assert (teacher.abs() > 0.99).double().mean() > 0.98
    untaught = sample_ddim(best, COSINE, coarse, z)
    assert (untaught - teacher).abs().mean() > 0.05

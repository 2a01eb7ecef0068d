"""Everything stays finite at the ends of the noise range, in one step, under strong guidance, and in half precision.

The cases come from the tables, so that a new row is tested at once.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.denoisers import TIME_INPUT_KINDS, get_time_input, make_denoise, project_x0
from diffusion.discrete_schedules import DISCRETE_SCHEDULES, make_discrete_schedule
from diffusion.guidance import classifier_free_guided, with_known_positions
from diffusion.loss import LOSS_TERMS, LOSSES, LossConfig, denoising_loss, loss_terms
from diffusion.objectives import OBJECTIVES
from diffusion.samplers import SAMPLERS, make_sampler, sampler_kwargs
from diffusion.schedules import CONTINUOUS_SCHEDULES, make_continuous_schedule
from diffusion.timesteps import TIMESTEP_GRIDS, make_grid, training_time
from diffusion.weighting import MIN_SNR, WEIGHTINGS, make_weighting, p2_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WEIGHTS = (None, 0.0, 1.0, 50.0)  # of classifier-free guidance; None: unguided
SCHEDULES = (*CONTINUOUS_SCHEDULES, *(f"chain {name}" for name in DISCRETE_SCHEDULES))
MANY = settings(max_examples=100, deadline=None)
times = st.sampled_from([0.0, 1.0, 1e-7, 1 - 1e-7, 1e-3, 0.5]) | st.floats(0, 1)


def make_schedule(name: str, scale: float = 1.0, timesteps: int = 1000):
    if name.startswith("chain "):
        return make_discrete_schedule(name.removeprefix("chain "), timesteps)
    return make_continuous_schedule(name, scale)


@st.composite
def schedules(draw):
    scale = draw(st.sampled_from([0.01, 0.1, 1.0, 10.0, 100.0]))
    return make_schedule(
        draw(st.sampled_from(SCHEDULES)), scale, draw(st.integers(1, 60) | st.sampled_from([1000, 4000]))
    )


def bounded_network(z, time, x0_prev):
    """A network that does not know the data: finite, in the dtype of its input, and rarely right."""
    assert z.dtype == time.dtype and (x0_prev is None or x0_prev.dtype == z.dtype) and bool(z.isfinite().all())
    assert x0_prev is None or bool(x0_prev.isfinite().all())
    return torch.tanh(z * (1 + time.view(-1, 1, 1)) - (0 if x0_prev is None else 0.1 * torch.tanh(x0_prev)))


def sample(sampler, objective, schedule, dtype, weight, steps, grid="uniform", kind="alpha_bar"):
    denoise = make_denoise(bounded_network, objective, schedule, kind)
    if weight is not None:  # two halves that disagree as much as bounded outputs can
        both = make_denoise(
            lambda z, time, x0_prev: torch.cat([torch.tanh(z[:2]), -torch.tanh(z[2:])]), objective, schedule
        )
        denoise = classifier_free_guided(both, weight)
    z = 3 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    return make_sampler(sampler, eta=0.5)(denoise, schedule, make_grid(grid, schedule, steps), z)


@pytest.mark.parametrize(("sampler", "objective"), list(product(SAMPLERS, OBJECTIVES)))
def test_samples_are_finite_for_every_schedule(sampler, objective):
    for name, dtype, weight in product(SCHEDULES, DTYPES, (None, 50.0)):
        x0 = sample(sampler, objective, make_schedule(name), dtype, weight, steps=1 if weight else 2)
        assert x0.dtype == dtype and bool(x0.isfinite().all()), (name, dtype, weight)


@MANY
@given(
    st.sampled_from(list(SAMPLERS)), st.sampled_from(list(OBJECTIVES)), schedules(), st.sampled_from(DTYPES),
    st.sampled_from(WEIGHTS), st.integers(1, 6), st.sampled_from(list(TIMESTEP_GRIDS)),
    st.sampled_from(TIME_INPUT_KINDS),
)  # fmt: skip
def test_samples_are_finite_for_any_combination(sampler, objective, schedule, dtype, weight, steps, grid, kind):
    steps = min(steps, schedule.timesteps or steps)
    x0 = sample(sampler, objective, schedule, dtype, weight, steps, grid, kind)
    assert x0.dtype == dtype and bool(x0.isfinite().all())


@settings(max_examples=60, deadline=None)
@given(schedules(), st.lists(times, min_size=1, max_size=5), st.sampled_from((*DTYPES, torch.float64)))
def test_levels_are_finite_and_variance_preserving(schedule, t, dtype):
    t = torch.tensor(t, dtype=dtype)
    alpha, sigma = schedule(t)
    for x in (alpha, sigma):
        assert bool(((x >= 0) & (x <= 1)).all())
    total = alpha + sigma if getattr(schedule, "name", "") == "rectified_flow" else alpha**2 + sigma**2
    torch.testing.assert_close(total, torch.ones_like(alpha), atol=1e-5, rtol=0)
    for kind in TIME_INPUT_KINDS:
        time = get_time_input(schedule, t, kind, train_schedule=make_continuous_schedule("cosine"))
        assert bool(((time >= 0) & (time <= 1)).all())
    assert bool(
        ((found := training_time(make_continuous_schedule("sqrt"), schedule, t)) >= 0).all() and (found <= 1).all()
    )


@MANY
@given(
    schedules(), st.lists(times, min_size=3, max_size=3), st.sampled_from(list(OBJECTIVES)),
    st.sampled_from(list(LOSSES)), st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_losses_and_their_gradients_are_finite(schedule, t, objective, loss_type, dtype, self_conditioned):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 2, 4, generator=generator) for _ in range(2))
    weight = torch.ones(4, requires_grad=True)

    def bind(rows):
        def network(z, time, x0_self_cond=None, self_cond_mask=None):
            previous = 0 if x0_self_cond is None else torch.tanh(x0_self_cond.to(dtype))
            return torch.tanh(z.to(dtype) * weight.to(dtype)) + previous  # as under autocast

        return network

    chosen = (torch.tensor([True, False, True]), torch.tensor([0, 2])) if self_conditioned else None
    result = denoising_loss(
        bind, x0, torch.tensor(t), eps, LossConfig(schedule, objective, loss_type), self_cond=chosen, mean=x0,
        mask=torch.tensor([[True, True], [True, False], [False, False]]), with_x0_hat=True,
    )  # fmt: skip
    assert bool(result.loss.isfinite().all()) and bool(result.x0_hat.isfinite().all())
    names = dict.fromkeys(LOSS_TERMS.keys() - {"variational_bound"}, 1.0)  # that needs a network with a variance
    for term in loss_terms(result, names).values():
        assert bool(term.isfinite().all())
    (gradient,) = torch.autograd.grad(result.loss.sum(), weight)
    assert bool(gradient.isfinite().all())


@MANY
@given(schedules(), st.lists(times, min_size=1, max_size=4), st.sampled_from(list(OBJECTIVES)))
def test_weights_of_losses_are_finite(schedule, t, objective):
    t = torch.tensor(t)
    for name in WEIGHTINGS:
        if name != "min_snr" or OBJECTIVES[objective].symbol in MIN_SNR:
            assert bool(make_weighting(name, objective)(schedule, t).isfinite().all())
    for gamma, k in ((0.0, 1.0), (1.0, 1.0), (5.0, 0.5)):
        assert bool(p2_weight(schedule, t, gamma, k).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrappers_in_half_precision(dtype):
    """Projection and known positions work on the estimates of a half-precision network."""
    schedule, mask = make_continuous_schedule("cosine"), torch.tensor([[True, False, False]] * 2)
    value = torch.ones(2, 3, 4, dtype=dtype)
    denoise = make_denoise(bounded_network, "pred_noise", schedule)
    denoise = project_x0(denoise, lambda x0: torch.nn.functional.normalize(x0, dim=-1) * math.sqrt(4))
    denoise = with_known_positions(denoise, value, mask)
    for name in SAMPLERS:
        x0 = make_sampler(name)(denoise, schedule, make_grid("uniform", schedule, 3), torch.randn(2, 3, 4).to(dtype))
        assert x0.dtype == dtype and bool(x0.isfinite().all()) and torch.equal(x0[:, :1], value[:, :1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_follows_float32(name):
    """Only the network is less exact; the arithmetic of the sampler is that of float32."""
    schedule, kwargs = make_continuous_schedule("cosine"), {}
    if "eta" in sampler_kwargs(name):
        kwargs["eta"] = 0.0
    z = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3)).bfloat16()
    noise = lambda step, like: torch.zeros_like(like)  # noqa: E731
    found = [
        make_sampler(name, **kwargs)(
            make_denoise(lambda z, time, x0_prev: (0.3 * z).to(z.dtype), "pred_v", schedule),
            schedule, make_grid("log_snr", schedule, 8), start, noise,
        )
        for start in (z, z.float())
    ]  # fmt: skip
    torch.testing.assert_close(found[0].float(), found[1], atol=0.03, rtol=0.03)

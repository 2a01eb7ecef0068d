"""Respaced chains: which steps are kept, and that a subset of steps is still a whole process."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diffusion.chains import DISCRETE, Chain, make_discrete
from diffusion.denoisers import make_denoise, time_value
from diffusion.grids import discrete_grid
from diffusion.respacing import kept_steps, respaced_grid
from diffusion.samplers import VARIANCES, sample_ddim, sample_ddpm, sample_dpmpp_2m, sample_dpmpp_2m_sde, sample_heun
from diffusion.schedules import log_snr
from diffusion.transitions import transitions

SAMPLERS = {
    "ddpm large": sample_ddpm,
    "ddpm small": partial(sample_ddpm, variance="small"),
    "ddim": sample_ddim,
    "dpmpp": sample_dpmpp_2m,
    "dpmpp_sde": sample_dpmpp_2m_sde,
    "heun": sample_heun,
}


@pytest.mark.parametrize(
    ("spec", "timesteps", "kept"),
    [
        ("ddim5", 10, [8, 6, 4, 2, 0]),
        ("ddim1", 10, [0]),
        ("10", 10, list(range(9, -1, -1))),
        ("3", 11, [10, 5, 0]),
        ("1", 10, [0]),
        ("2,3,1", 11, [8, 7, 6, 4, 3, 0]),  # sections 0-3, 4-7, 8-10, each from its first to its last step
        ("2,2,1", 11, [8, 7, 4, 3, 0]),
        ("at:0,4,9", 10, [9, 4, 0]),
        ([4, 0, 9, 4], 10, [9, 4, 0]),
    ],
)
def test_the_kept_steps_are_the_published_ones(spec, timesteps, kept):
    assert kept_steps(spec, timesteps) == kept


@settings(max_examples=60, deadline=None)
@given(timesteps=st.integers(2, 80), data=st.data())
def test_sections_keep_what_was_asked_for_in_each(timesteps, data):
    sections = data.draw(st.integers(1, min(4, timesteps)))
    size, longer = divmod(timesteps, sections)
    counts = [data.draw(st.integers(1, size + (k < longer))) for k in range(sections)]
    kept = kept_steps(",".join(map(str, counts)), timesteps)
    assert len(kept) == sum(counts) and kept == sorted(set(kept), reverse=True)
    start = 0
    for k, count in enumerate(counts):
        stop = start + size + (k < longer)
        inside = [i for i in kept if start <= i < stop]
        assert len(inside) == count and inside[-1] == start and (count == 1 or inside[0] == stop - 1)
        start = stop


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(list(DISCRETE)),
    sampler=st.sampled_from(list(SAMPLERS)),
    timesteps=st.integers(2, 60),
    data=st.data(),
)
def test_a_perfect_predictor_reaches_zero_noise_at_every_respacing(name, sampler, timesteps, data):
    """Whatever steps are kept, the state is as noisy as the network is told at each, and the end is x0 itself."""
    kept = data.draw(st.sets(st.integers(0, timesteps - 1), min_size=1))
    chain, times = make_discrete(name, timesteps), respaced_grid(timesteps, list(kept))
    x0 = torch.full((2000, 1, 1), 0.7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    level = chain(times[0])
    z = level.alpha * x0 + level.sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)

    def denoise(z, t, x0_prev):
        now = chain(t[0])
        std = float(((z - now.alpha * x0) / now.sigma).square().mean().sqrt())
        # the large variance is that of unit Gaussian data: with x0 known it is too much, but never without bound
        assert abs(std - 1) < 0.1 or (sampler == "ddpm large" and std < 40)
        return x0

    def noise(step, like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    assert torch.equal(SAMPLERS[sampler](denoise, chain, times, z, noise), x0)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(list(DISCRETE)), timesteps=st.integers(2, 60), data=st.data())
def test_respacing_is_the_chain_of_the_betas_between_kept_steps(name, timesteps, data):
    """The published construction: betas rebuilt from the kept alpha_bar, and a map from new indices to old ones."""
    kept = sorted(data.draw(st.sets(st.integers(0, timesteps - 1), min_size=1)))
    chain = make_discrete(name, timesteps)
    alpha_bar = torch.cumprod(1 - DISCRETE[name](timesteps), 0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    betas = 1 - alpha_bar / before
    assume(betas.max() < 1 - 1e-12)  # a step that destroys more has the beta 1 in float64, and its chain no end
    rounding = (torch.finfo(torch.float64).eps / (1 - betas)).cumsum(0)  # what 1 - beta loses, as log alpha_bar sees it
    rebuilt = Chain(betas)
    z = torch.zeros(1, 1, 1, dtype=torch.float64)
    steps = list(transitions(chain, respaced_grid(timesteps, kept), z))
    whole = list(transitions(rebuilt, discrete_grid(len(kept), len(kept)), z))
    for at, new, old in zip(steps, whole, reversed(range(len(kept))), strict=True):
        atol = 1e-9 + 4 * float(rounding[old])
        torch.testing.assert_close(log_snr(at.now), log_snr(new.now), atol=atol, rtol=1e-9)
        told = time_value(chain, at.times, "index") * timesteps
        torch.testing.assert_close(told, torch.tensor([float(kept[old])], dtype=torch.float64), atol=1e-9, rtol=0)
        one, bar, bar_s = 1 - (at.now.alpha / at.then.alpha) ** 2, at.now.alpha**2, at.then.alpha**2
        torch.testing.assert_close(VARIANCES["large"](one, bar, bar_s), betas[old], atol=1e-9, rtol=1e-6)
        posterior = betas[old] * (1 - before[old]) / (1 - alpha_bar[old])
        torch.testing.assert_close(VARIANCES["small"](one, bar, bar_s), posterior, atol=1e-9, rtol=1e-6)


def test_the_network_is_told_the_time_of_its_own_chain():
    chain, told = make_discrete("sqrt", 2000), []

    def network(z, time, x0_prev):
        told.append(float(1000 * time[0]))
        return z

    denoise = make_denoise(network, "x0", chain, "index")
    sample_ddim(denoise, chain, respaced_grid(2000, [1999, 1000, 3]), torch.zeros(1, 1, 1, dtype=torch.float64))
    assert told == pytest.approx([999.5, 500.0, 1.5])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: kept_steps("ddim7", 10), "ddim4 or ddim5"),
        (lambda: kept_steps("ddim3,4", 10), "ddim3,4"),
        (lambda: kept_steps("fast", 10), "fast"),
        (lambda: kept_steps("", 10), "none of"),
        (lambda: kept_steps("6,3", 10), "section 1 of the chain, which has 5"),
        (lambda: kept_steps("0", 10), "0 steps"),
        (lambda: kept_steps("at:3,10", 10), "step 10"),
        (lambda: kept_steps([], 10), "no step"),
        (lambda: respaced_grid(10, []), "no step"),
    ],
)
def test_a_wrong_respacing_is_one_line(wrong, words):
    with pytest.raises(ValueError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)

"""Control by gradients with known solutions: Gaussian data and a label whose likelihood is Gaussian as well."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion.classifier_guidance import classifier_guidance_hook, classifier_guided, grad_log_prob
from diffusion.denoisers import project_x0
from diffusion.guidance import with_known_positions
from diffusion.samplers import SAMPLERS, sample_ddim, sample_ddpm
from diffusion.schedules import broadcast_level, make_continuous_schedule
from diffusion.timesteps import make_grid

COSINE = make_continuous_schedule("cosine")
WANTED, WIDTH = torch.tensor([0.5, 0.5, -1.0, 2.9], dtype=torch.float64), 0.6
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def label(gaussian):
    """log p(label | z_t), where p(label | x0) = exp(-|x0 - WANTED|^2 / (2 WIDTH^2)): x0 given z_t is Gaussian."""

    def log_prob(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = broadcast_level(COSINE, t, z)
        known = gaussian.denoise(COSINE)(z, t)
        rest = gaussian.std**2 * sigma**2 / (alpha**2 * gaussian.std**2 + sigma**2)  # variance of x0 given z_t
        return (-((known - WANTED) ** 2) / (2 * (rest + WIDTH**2)) - (rest + WIDTH**2).log() / 2).sum((1, 2))

    return log_prob


def given_label(gaussian, weight: float = 1.0):
    """The data that has the label: the product of two Gaussians."""
    variance = 1 / (1 / gaussian.std**2 + weight / WIDTH**2)
    return type(gaussian)(variance * (gaussian.mean / gaussian.std**2 + weight * WANTED / WIDTH**2), variance.sqrt())


def noise(step: int, like: Tensor) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(step))


def start(n: int = 4000) -> Tensor:
    return torch.randn(n, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(99))


def probability(x0: Tensor) -> float:
    """Mean log p(label | x0), of the parts that depend on x0."""
    return float((-((x0 - WANTED) ** 2) / (2 * WIDTH**2)).sum((1, 2)).mean())


def test_the_gradient_is_per_text_and_works_inside_no_grad(gaussian, noise_at_start):
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    log_prob = label(gaussian)
    with torch.no_grad():
        slope = grad_log_prob(log_prob, noise_at_start, t)
    assert not slope.requires_grad
    h = 1e-6 * torch.randn(noise_at_start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rise = log_prob(noise_at_start + h, t) - log_prob(noise_at_start - h, t)
    torch.testing.assert_close(2 * (slope * h).sum((1, 2)), rise, atol=1e-12, rtol=1e-5)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95, 1.0])
def test_a_guided_estimate_is_the_mean_given_the_label(gaussian, noise_at_start, t):
    times = torch.full((2,), t, dtype=torch.float64)
    ours = classifier_guided(gaussian.denoise(COSINE), label(gaussian), COSINE)(noise_at_start, times, None)
    torch.testing.assert_close(ours, given_label(gaussian).denoise(COSINE)(noise_at_start, times))


@every_sampler
def test_guided_samples_have_the_distribution_given_the_label(sampler, gaussian):
    denoise, times = gaussian.denoise(COSINE), make_grid("log_snr", COSINE, 60)
    out = sampler(classifier_guided(denoise, label(gaussian), COSINE), COSINE, times, start(), noise)
    exact = given_label(gaussian)
    torch.testing.assert_close(out.mean((0, 1)), exact.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(out.std((0, 1)), exact.std, atol=0.03, rtol=0.1)
    assert probability(out) > probability(sampler(denoise, COSINE, times, start(), noise)) + 1


@every_sampler
def test_a_larger_strength_gives_a_higher_label_probability(sampler, gaussian):
    denoise, times = gaussian.denoise(COSINE), make_grid("log_snr", COSINE, 30)

    def reached(strength: float) -> float:
        step_hook = classifier_guidance_hook(label(gaussian), COSINE, strength=strength) if strength else None
        return probability(sampler(denoise, COSINE, times, start(1000), noise, step_hook))

    against, off, one, three = (reached(strength) for strength in (-1.0, 0.0, 1.0, 3.0))
    assert against < off < one < three
    assert one > off + 0.4 and against < off - 0.4, "the sign is right"


def one_transition(step_hook, gaussian, seed: int = 5, n: int = 2):
    """z before and after the correction of one ancestral step, its mean and std."""
    seen = {}

    def watch(z, x0, mean, std, t, s, step):
        seen.update(before=z, mean=mean, std=std, t=t, s=s, after=step_hook(z, x0, mean, std, t, s, step))
        return seen["after"]

    times = torch.tensor([0.7, 0.5], dtype=torch.float64)
    z = torch.randn(n, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sample_ddpm(gaussian.denoise(COSINE), COSINE, times, z, noise, watch, variance="small")
    return seen


def test_many_gradient_steps_converge_to_the_maximum(gaussian):
    strength, fluency = 2.0, 0.5
    seen = one_transition(
        classifier_guidance_hook(label(gaussian), COSINE, strength=strength, fluency=fluency, steps=1000, rate=0.3),
        gaussian,
    )
    slope = grad_log_prob(label(gaussian), seen["after"], torch.full((2,), 0.5, dtype=torch.float64))
    top = seen["mean"] + strength / fluency * seen["std"] ** 2 * slope
    torch.testing.assert_close(seen["after"], top, atol=1e-6, rtol=0)


def test_the_fluency_term_limits_the_effect_of_the_label(gaussian):
    def distance(**choices) -> float:
        seen = one_transition(classifier_guidance_hook(label(gaussian), COSINE, strength=3.0, **choices), gaussian)
        return float((seen["after"] - seen["mean"]).norm())

    by_fluency = [distance(fluency=f, steps=400, rate=0.2) for f in (3.0, 1.0, 0.3)]
    assert by_fluency[0] < by_fluency[1] < by_fluency[2]
    by_steps = [distance(fluency=0.0, steps=n) for n in (1, 4, 16)]
    assert by_steps[0] < by_steps[1] < by_steps[2], "without it, nothing but the number of steps"
    held = [distance(fluency=1.0, steps=n, rate=0.5) for n in (100, 400)]
    assert held[0] == pytest.approx(held[1], rel=1e-6)


def test_langevin_steps_sample_the_posterior(gaussian):
    """From p(z_s | z_t) p(label | z_s), here a Gaussian in z_s too."""
    step_hook = classifier_guidance_hook(
        label(gaussian), COSINE, steps=300, rate=0.05, langevin=lambda step: torch.Generator().manual_seed(7)
    )
    z = torch.zeros(6000, 1, 4, dtype=torch.float64)
    s, t, std = torch.tensor(0.5).double(), torch.tensor(0.7).double(), torch.tensor(0.4).double()
    out = step_hook(z, z, z + 0.2, std, t, s, 0)
    alpha, sigma = COSINE(s)
    gain = alpha * gaussian.std**2 / (alpha**2 * gaussian.std**2 + sigma**2)
    width = gaussian.std**2 * (1 - alpha * gain) + WIDTH**2
    precision = 1 / std**2 + gain**2 / width
    mean = (0.2 / std**2 + gain * (WANTED - gaussian.mean + gain * alpha * gaussian.mean) / width) / precision
    torch.testing.assert_close(out.mean((0, 1)), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(out.std((0, 1)), precision**-0.5, atol=0, rtol=0.06)


def two_classes(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x0 | z] and log odds of the second of two narrow classes, at -1 and +1, of shares 0.8 and 0.2; L = D = 1."""
    alpha, sigma = broadcast_level(COSINE, t, z)
    spread = 0.1
    variance = alpha**2 * spread**2 + sigma**2
    odds = 2 * alpha * z / variance + math.log(0.2 / 0.8)
    share, gain = torch.sigmoid(odds), alpha * spread**2 / variance
    mean = sum(p * (c + gain * (z - alpha * c)) for p, c in ((1 - share, -1.0), (share, 1.0)))
    return mean, odds[:, 0, 0]


@every_sampler
@pytest.mark.parametrize("expected", [0, 1])
def test_nearly_all_samples_have_the_target_label_and_stay_on_the_data(sampler, expected):
    def denoise(z, t, x0_prev=None):
        return two_classes(z, t)[0]

    def log_prob(z, t):
        odds = two_classes(z, t)[1]
        return torch.nn.functional.logsigmoid(odds if expected else -odds)

    z = torch.randn(1000, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = make_grid("log_snr", COSINE, 40)

    def share(out):
        return float(((out > 0) == bool(expected)).double().mean())

    unguided = share(sampler(denoise, COSINE, times, z, noise))
    assert unguided == pytest.approx((0.8, 0.2)[expected], abs=0.05)
    by_estimate = sampler(classifier_guided(denoise, log_prob, COSINE), COSINE, times, z, noise)
    by_correction = sampler(denoise, COSINE, times, z, noise, classifier_guidance_hook(log_prob, COSINE, strength=3.0))
    for out in (by_estimate, by_correction):
        assert share(out) >= 0.95
        assert float((out.abs() - 1).abs().max()) < 0.6, "near one of the classes"


def test_classifier_guidance_composes_with_guidance_projection_and_known_positions(gaussian, noise_at_start):
    mask = torch.tensor([[True, False, False]] * 2)
    value = noise_at_start.flip(0)
    denoise = with_known_positions(
        project_x0(classifier_guided(gaussian.denoise(COSINE), label(gaussian), COSINE), torch.sign), value, mask
    )
    out = sample_ddim(denoise, COSINE, make_grid("uniform", COSINE, 3), noise_at_start)
    assert torch.equal(out[mask], value[mask]) and (out[~mask].abs() == 1).all()


def test_no_gradient_step_at_t_0(gaussian, noise_at_start):
    zero = torch.tensor(0.0)
    step_hook = classifier_guidance_hook(label(gaussian), COSINE)
    assert step_hook(noise_at_start, None, None, zero, torch.tensor(0.1), zero, 9) is noise_at_start


def test_a_gradient_step_is_in_units_of_the_variance_of_an_ancestral_step():
    """Also where the sampler is deterministic and has none: the variance of z_s given z_t and x0."""
    t, s, z = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), torch.zeros(1, 2, 3)
    z = z.double()
    high, low = COSINE(t), COSINE(s)
    step_hook = classifier_guidance_hook(lambda z, t: z.sum((1, 2)), COSINE, steps=1, rate=1.0, fluency=0.0)
    for std in (0.0, 0.3):
        expected = std**2
        if not std:
            expected = low.sigma**2 - (high.alpha * low.sigma**2 / (low.alpha * high.sigma)) ** 2
        found = step_hook(z, z, z, torch.tensor(std, dtype=torch.float64), t, s, 0)
        torch.testing.assert_close(found, torch.full_like(z, float(expected)))


@pytest.mark.parametrize("choice", [{"steps": 0}, {"rate": 0.0}, {"rate": 1.5}, {"fluency": -1.0}])
def test_an_invalid_option_is_a_one_line_error(choice, gaussian):
    with pytest.raises(ValueError, match="use 1 step or more") as error:
        partial(classifier_guidance_hook, label(gaussian), COSINE)(**choice)
    assert "\n" not in str(error.value)

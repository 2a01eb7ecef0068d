"""The linear denoiser: the exact conditional expectation of Gaussian latents, and what a network gains by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.loss import LossConfig, denoising_loss
from diffusion.objectives import TARGETS
from diffusion.schedules import make_continuous_schedule
from model import make_denoiser
from model.linear_denoiser import FLOOR, MOST_CORRELATED, LinearDenoiser
from model.options import DenoiserOptions
from pipelines.builders.linear_denoisers import linear_path, variance_preserving

D = 6
COSINE, FLOW = make_continuous_schedule("cosine"), make_continuous_schedule("rectified_flow")
PATHS = {"cosine": (COSINE, variance_preserving), "flow": (FLOW, linear_path)}


def gaussian_texts(length, n=300, seed=0):
    """Latents (n, L, D) whose principal directions are independent, exactly, so that their covariance is modeled."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(n, length * D, generator=generator, dtype=torch.float64)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T @ white / n)).T  # sample covariance I
    mixing = torch.randn(D, length, length, generator=generator, dtype=torch.float64)
    sizes = torch.linspace(0.3, 3, D, dtype=torch.float64)  # apart, so that the directions are found
    mixing = mixing / mixing.square().sum((1, 2), keepdim=True).sqrt() * sizes[:, None, None]
    rotation = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    along = torch.einsum("nld,dlm->nmd", white.view(n, length, D), mixing)
    return (along @ rotation.T + torch.randn(length, D, generator=generator, dtype=torch.float64)).float()


def estimated(x, objective="v", path=variance_preserving, mask=None, one_length=False):
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    made = LinearDenoiser(x.shape[-1], x.shape[1], path, TARGETS[objective], one_length=one_length)
    made.estimate(lambda: [(x[i : i + 64], mask[i : i + 64]) for i in range(0, len(x), 64)])
    return made


def expectation(x, z, alpha, sigma, objective, share=0.0):
    """E[a x0 + b eps | z] for the Gaussian with mean and covariance of x, by one solve of all L D numbers.

    share: that of the covariance between positions which is taken away.
    """
    flat = x.flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T, correction=0)
    within = torch.block_diag(*[torch.ones(D, D)] * x.shape[1]).double()
    covariance = covariance * (1 - share * (1 - within))
    alpha, sigma = alpha.double(), sigma.double()
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(flat.shape[1])
    whitened = torch.linalg.solve(noisy, (z.flatten(1).double() - alpha * mean).T).T
    a, b = TARGETS[objective](alpha, sigma)
    return (a * (mean + alpha * whitened @ covariance) + b * sigma * whitened).view_as(z).float()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("objective", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("length", [1, 3])
def test_equals_the_conditional_expectation_of_gaussian_latents(length, objective, path):
    schedule, amplitudes = PATHS[path]
    x = gaussian_texts(length)
    linear = estimated(x, objective, amplitudes)
    for t in (0.05, 0.5, 0.95):
        level = schedule(torch.tensor(t))
        z = level.alpha * x[:9] + level.sigma * torch.randn(9, length, D)
        found = linear(z, level.alpha[None] ** 2)
        assert torch.allclose(found, expectation(x, z, *level, objective), atol=2e-3 * float(found.abs().max()))


@pytest.mark.parametrize("n", [40, 300])
def test_latents_of_one_length_have_a_covariance_of_all_their_numbers(n):
    """Any covariance, not only one of independent directions; of few texts less of it between positions."""
    torch.manual_seed(0)
    x = (torch.randn(n, 3 * D) @ torch.randn(3 * D, 3 * D)).view(n, 3, D) + torch.randn(3, D)
    linear = estimated(x, one_length=True)
    alpha, sigma = COSINE(torch.tensor(0.6))
    z = alpha * x + sigma * torch.randn_like(x)
    found = linear(z, alpha[None] ** 2, torch.ones(n, 3, dtype=torch.bool))
    expected = expectation(x, z, alpha, sigma, "v", share=3 * D / (3 * D + n))
    assert torch.allclose(found, expected, atol=1e-3 * float(found.abs().max()))
    assert linear.is_joint and not estimated(x).is_joint


def test_each_text_has_its_own_noise_and_number_of_latents():
    """A row of a batch gives what it gives alone, and what is beyond the mask changes nothing."""
    x = gaussian_texts(4)
    linear = estimated(x)
    time, z = torch.tensor([0.9, 0.5, 0.1]), torch.randn(3, 4, D)
    mask = torch.arange(4) < torch.tensor([1, 3, 4])[:, None]
    found = linear(z, time, mask)
    for i, visible in enumerate((1, 3, 4)):
        alone = linear(z[i : i + 1, :visible], time[i : i + 1])
        assert torch.allclose(found[i, :visible], alone[0], atol=1e-5)
        assert not found[i, visible:].any()


def test_missing_latents_are_left_out_of_the_statistics():
    """Of a pair of positions those texts count that have both; the zeros of padding do not."""
    x = gaussian_texts(3)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    mask[:150, 2] = False
    garbage = torch.where(mask[..., None], x, torch.full_like(x, 1e3))
    padded = estimated(garbage, mask=mask)
    clean = estimated(torch.where(mask[..., None], x, 0), mask=mask)
    for name, value in padded.named_buffers():
        assert torch.equal(value, dict(clean.named_buffers())[name]), name
    assert torch.allclose(padded.mean[:2], x[:, :2].mean(0), atol=1e-5)
    assert torch.allclose(padded.mean[2], x[150:, 2].mean(0), atol=1e-5)
    assert int(padded.num_latents) == int(mask.sum())


def test_many_positions_are_independent():
    length = MOST_CORRELATED + 1
    linear = estimated(torch.randn(50, length, D))
    assert linear.variances.shape == (1, D, 1)
    assert sum(b.numel() for b in linear.buffers()) < 2 * length * D * D
    assert linear(torch.randn(2, 5, D), torch.rand(2)).shape == (2, 5, D)


def test_a_direction_that_never_varies_stays_finite():
    x = gaussian_texts(1)
    x[..., 2] = 0.5
    linear = estimated(x, "eps")
    assert float(linear.variances.min()) == pytest.approx(FLOOR)
    time = torch.tensor([1.0, 1 - 1e-7, 0.5, 1e-9])
    assert linear(torch.randn(4, 1, D), time).isfinite().all()


@pytest.mark.parametrize("variant", ["mlp", "latent"])
def test_it_is_added_to_the_estimate_and_not_to_a_learned_variance(variant):
    torch.manual_seed(0)
    options = DenoiserOptions(
        tx_dim=64,
        tx_depth=1,
        disable_dropout=True,
        denoiser_variant=variant,
        learned_variance=True,
        linear_denoiser=True,
    )
    network, x, time = make_denoiser(D, 2, options), gaussian_texts(2, 200), torch.tensor([0.2, 0.7])
    network.linear = estimated(x)
    with torch.no_grad():
        whole = network(x[:2], time)
        linear, network.linear = network.linear, None
        added = whole - network(x[:2], time)
        assert whole.shape[-1] == 2 * D
        torch.testing.assert_close(added[..., :D], linear(x[:2], time), atol=1e-5, rtol=1e-5)
        assert added[..., :D].abs().max() > 0.1 and not added[..., D:].any()


def trained_loss(variant, with_linear, steps=60):
    """Loss of held-out Gaussian latents after a few steps."""
    torch.manual_seed(0)
    options = DenoiserOptions(tx_dim=64, tx_depth=1, disable_dropout=True, denoiser_variant=variant)
    x = gaussian_texts(2, 2000)
    network = make_denoiser(D, 2, replace(options, linear_denoiser=with_linear))
    if with_linear:
        network.linear = estimated(x[:1000])
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def loss(rows):
        t = (torch.arange(len(rows)) + 0.5) / len(rows)
        return denoising_loss(
            lambda _: lambda z, time, *_: network(z, time), rows, t, torch.randn_like(rows), LossConfig(COSINE, "v")
        ).loss.mean()

    for _ in range(steps):
        optimizer.zero_grad()
        loss(x[torch.randint(1000, (64,))]).backward()
        optimizer.step()
    torch.manual_seed(1)
    with torch.no_grad():
        return float(loss(x[1000:]))


@pytest.mark.parametrize("variant", ["mlp", "latent"])
def test_a_network_starts_where_another_would_arrive(variant):
    """Before its first step it is the best denoiser of Gaussian latents, which sixty steps do not reach without."""
    start = trained_loss(variant, with_linear=True, steps=0)
    assert start < trained_loss(variant, with_linear=False) - 0.02
    assert abs(trained_loss(variant, with_linear=True, steps=20) - start) < 0.05

"""The residual MLP: widths, one vector through every sampler and condition, lengths, and what it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffusion.denoisers import make_denoise
from diffusion.guidance import classifier_free_guided
from diffusion.loss import LossConfig, denoising_loss
from diffusion.noise_levels import broadcast_level
from diffusion.samplers import SAMPLERS, make_sampler
from diffusion.schedules import make_continuous_schedule
from diffusion.time_sampling import sample_stratified
from diffusion.timesteps import linear_grid
from model import make_denoiser
from model.options import DenoiserOptions
from utils.records import Condition

D = 16
COSINE = make_continuous_schedule("cosine")
OPTIONS = DenoiserOptions(
    tx_dim=64, tx_depth=2, self_condition=True, scale_shift=True, disable_dropout=True, denoiser_variant="mlp"
)
vector = pytest.mark.parametrize("variant", ["mlp", "latent"])


def network(variant="mlp", length=1, num_classes=0, source_dim=0, **changes):
    torch.manual_seed(0)
    options = replace(OPTIONS, denoiser_variant=variant, class_conditional=num_classes > 0, **changes)
    made = make_denoiser(D, length, options, num_classes, source_dim)
    torch.nn.init.normal_(made.output_proj.weight, std=0.1)
    return made.eval()


@pytest.mark.parametrize("width", [1, 7, 100, 129, 513])
def test_any_width(width):
    made = network(tx_dim=width, source_dim=5, num_classes=2)
    condition = Condition.of(torch.tensor([0, 1]), torch.randn(2, 3, 5))
    made(torch.randn(2, 1, D), torch.rand(2), None, condition, torch.randn(2, 1, D)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in made.named_parameters() if "null" not in n
               and n != "init_self_cond")  # fmt: skip


def test_size_of_the_network_for_sentence_embeddings():
    with torch.device("meta"):
        made = make_denoiser(384, 1, replace(OPTIONS, tx_dim=1024, tx_depth=6))
    assert sum(p.numel() for p in made.parameters()) == 29_871_360


@vector
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v", "pred_flow"])
@torch.no_grad()
def test_one_vector_through_every_sampler_objective_and_condition(variant, sampler, objective):
    """Guided by class and source, self-conditioned: the sample is finite and differs by condition."""
    made = network(variant, num_classes=3, source_dim=12)
    condition = Condition.of(
        torch.tensor([0, 1, 2]), torch.randn(3, 4, 12), torch.arange(4) < torch.tensor([[4], [2], [0]])
    )
    z = torch.randn(3, 1, D)

    def sample(condition, weight=1.0):
        both = Condition.stack(condition, condition.null())
        denoise_2B = make_denoise(lambda z, t, prev: made(z, t, None, both, prev), objective, COSINE)
        denoise = classifier_free_guided(denoise_2B, weight)
        noise = lambda step, like: torch.randn(like.shape, generator=torch.Generator().manual_seed(step))  # noqa: E731
        return make_sampler(sampler)(denoise, COSINE, linear_grid(4), z, noise)

    plain, guided = sample(condition), sample(condition, 2.0)
    other = sample(replace(condition, class_id=torch.tensor([1, 1, 1])))
    assert plain.shape == z.shape and plain.isfinite().all() and guided.isfinite().all()
    assert not torch.allclose(plain, guided) and not torch.allclose(plain[0], other[0])
    assert torch.equal(plain[1], other[1])  # same class: rows do not reach each other


def test_the_length_is_an_input():
    """Zeros where there is text, and no text, are different."""
    made = network(length=4)
    z, time = torch.zeros(2, 4, D), torch.full((2,), 0.5)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    short, long = made(z, time, mask, None, torch.zeros(2, 4, D))
    assert (short[:2] - long[:2]).abs().max() > 1e-3
    assert torch.equal(
        made(z, time, mask, None, z), made(torch.where(mask[..., None], z, torch.nan), time, mask, None, z)
    )


def test_every_position_reaches_every_other():
    made = network(length=3)
    z = torch.randn(1, 3, D, requires_grad=True)
    for position in range(3):
        (gradient,) = torch.autograd.grad(made(z, torch.ones(1))[0, position].sum(), z)
        assert (gradient[0].abs().amax(-1) > 0).all()


def test_a_source_counts_by_learned_weights_and_its_padding_never():
    made = network(source_dim=12)
    source, mask = torch.randn(1, 4, 12), torch.tensor([[True, True, True, False]])
    args = (torch.randn(1, 1, D), torch.ones(1), None)
    out = made(*args, Condition.of(None, source, mask))
    broken = torch.where(mask[..., None], source, torch.inf)
    assert torch.equal(out, made(*args, Condition.of(None, broken, mask)))
    with torch.no_grad():
        made.source.scores.weight.zero_()  # equal weights: the mean of the states
    mean = made(*args, Condition.of(None, source[:, :3].mean(1, keepdim=True)))
    torch.testing.assert_close(made(*args, Condition.of(None, source, mask)), mean)


@pytest.mark.parametrize("compiled", [False, True])
def test_one_vector_compiles_as_one_graph(compiled):
    made = network(num_classes=3, source_dim=12)
    z, time = torch.randn(3, 1, D), torch.rand(3)
    condition = Condition.of(torch.tensor([0, 1, 2]), torch.randn(3, 4, 12))
    args = (z, time, None, condition, z, torch.tensor([True, False, True]))
    graph = torch.compile(made, fullgraph=True, backend="eager") if compiled else made
    torch.testing.assert_close(graph(*args), made(*args))
    torch._dynamo.reset()


def test_it_learns_one_vector_as_well_as_the_transformer():
    """Points on a few rays: both learn them; the MLP with the smaller loss at equal steps, width and depth."""
    g = torch.Generator().manual_seed(0)
    rays = torch.nn.functional.normalize(torch.randn(6, D, generator=g), dim=-1) * D**0.5

    def draw(n):
        ray = rays[torch.randint(len(rays), (n,), generator=g)]
        return ((0.7 + 0.6 * torch.rand(n, 1, generator=g)) * ray)[:, None, :]

    config = LossConfig(COSINE, "pred_v")
    held_out = draw(512), sample_stratified(512, g)[0], torch.randn(512, 1, D, generator=g)
    losses = {}
    for variant in ("mlp", "latent"):
        torch.manual_seed(0)
        made = make_denoiser(D, 1, replace(OPTIONS, denoiser_variant=variant))
        optimizer = torch.optim.AdamW(made.parameters(), 2e-3, weight_decay=0.0)

        def bind(rows, made=made):
            return lambda z, time, prev=None, keep=None: made(z, time, None, None, prev, keep)

        for _ in range(150):
            x0 = draw(128)
            selected = torch.arange(128) < 64, torch.arange(64)
            result = denoising_loss(
                bind, x0, sample_stratified(128, g)[0], torch.randn(x0.shape, generator=g), config, self_cond=selected
            )
            result.loss.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            losses[variant] = denoising_loss(bind, *held_out, config).loss.mean().item()
    x0, t, eps = held_out
    level = broadcast_level(COSINE, t, x0)
    untrained = (level.alpha * eps - level.sigma * x0).square().mean().item()  # the prediction 0
    assert losses["mlp"] < 0.5 * untrained, losses
    assert losses["mlp"] < 1.1 * losses["latent"], losses

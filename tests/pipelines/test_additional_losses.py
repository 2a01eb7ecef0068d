"""Additional losses: every training step of a denoiser adds the losses of the latent space and LOSS_TERMS."""

from __future__ import annotations

import pytest
import torch

from diffusion.loss import LOSS_TERMS, LossTerm
from diffusion.masking import masked_mean
from diffusion.objectives import target, to_x0
from diffusion.options import ProcessOptions, SamplingOptions
from diffusion.schedules import broadcast_level
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from model import make_denoiser
from model.options import DenoiserOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.steps.diffusion import DiffusionStep, TimestepSampler
from pipelines.steps.distillation import DistillationStep
from utils.distributed import DistContext
from utils.records import Batch, Latents
from utils.trackers import read_metrics

L, D, TEXTS = 3, 8, 6


class PlainSpace(LatentSpace):
    """Fixed latents, without further losses."""

    variable_length = False
    length, dim = L, D

    def encode(self, batch):
        raise NotImplementedError

    def decode(self, latents, **generate):
        raise NotImplementedError

    def fingerprint(self):
        return "plain"


class RegularizedSpace(PlainSpace):
    """Has two further losses: one of the tokens, one of the estimate."""

    loss_weights = {"size": 0.5}

    def losses(self, batch, latents, x0_hat):
        assert x0_hat.shape == latents.x0.shape == (len(batch), L, D)
        return {"size": x0_hat.square().mean((1, 2)), "token": batch.input_ids[:, 0].float()}


class Split:
    """Token ids: the first token of each text is its row."""

    def batch(self, rows):
        return Batch(rows[:, None].expand(-1, 2), torch.ones(len(rows), 2, dtype=torch.bool))


class Source:
    """Fixed latents."""

    def __init__(self, space):
        self.space, self.tokens, self.device = (
            NormalizedSpace(space, LatentStatistics(D, L)),
            Split(),
            torch.device("cpu"),
        )
        self.x0 = torch.randn(TEXTS, L, D, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return TEXTS

    def __call__(self, rows):
        return Latents(self.x0[rows], torch.ones(len(rows), L, dtype=torch.bool)), None


def make_step(kind, space):
    torch.manual_seed(0)
    denoiser = make_denoiser(D, L, DenoiserOptions(tx_dim=64, tx_depth=1, disable_dropout=True))
    torch.nn.init.normal_(denoiser.output_proj.weight, std=0.1)
    process = make_process(ProcessOptions(objective="pred_v"), SamplingOptions(sampling_timesteps=2), "latent")
    common = (denoiser, Source(space), process, TrainingSampler(0, 4), 9)
    if kind == "diffusion":
        return denoiser, DiffusionStep(*common, False)
    teacher = lambda z, k, mask, condition, x0_prev: 0.9 * z  # noqa: E731
    return denoiser, DistillationStep(*common, teacher, 2, self_condition=False)


every_kind = pytest.mark.parametrize("kind", ["diffusion", "distillation"])


@every_kind
def test_losses_of_a_space_are_added_with_their_weights_and_logged(kind):
    denoiser, step = make_step(kind, RegularizedSpace())
    losses, logged = step(0, 0)
    _, plain = make_step(kind, PlainSpace())
    torch.testing.assert_close(logged["diffusion"], plain(0, 0)[0])
    torch.testing.assert_close(losses, logged["diffusion"] + 0.5 * logged["size"] + logged["token"])
    torch.testing.assert_close(logged["token"], step.batch_sampler.rows(0, 0, TEXTS).float())
    plain_denoiser, plain = make_step(kind, PlainSpace())
    network, other = denoiser.output_proj.weight, plain_denoiser.output_proj.weight
    (with_losses,), (without,) = (
        torch.autograd.grad(total.sum(), w) for total, w in ((losses, network), (plain(0, 0)[0], other))
    )
    assert (with_losses - without).abs().max() > 1e-3, "they reach the network"


def times_of(name: str, t: torch.Tensor, weight: float) -> TimestepSampler:
    """A sampler of that name whose times are given, all with one importance weight."""
    options = ProcessOptions(objective="pred_v", schedule_sampler=name)
    made = TimestepSampler(make_process(options, SamplingOptions(sampling_timesteps=2), "latent"), DistContext())
    made.sampler = lambda n, generator, **_: (t[:n], torch.full((n,), weight))
    return made


@pytest.mark.parametrize(("name", "weight"), [("lossaware", 3.0), ("logit_normal", 1.0)])
def test_losses_have_the_importance_weights_of_their_times(name, weight):
    """Once, and not where the density of the times is the weight; what is recorded has none."""
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    losses = []
    for factor in (1.0, 3.0):
        _, step = make_step("diffusion", PlainSpace())
        step.timestep_sampler = times_of(name, t, factor)
        losses.append(step(0, 0)[0])
    torch.testing.assert_close(losses[1], weight * losses[0])
    if name == "lossaware":
        ((times, recorded),) = step.timestep_sampler.recorded
        assert torch.equal(times, t)
        torch.testing.assert_close(recorded, losses[0])


@pytest.mark.parametrize("objective", ["pred_x0", "pred_v", "pred_flow"])
@pytest.mark.parametrize("weighting", ["none", "min_snr", "flow"])
def test_errors_of_x0_follow_from_any_loss(objective, weighting):
    options = ProcessOptions(objective=objective, loss_weighting=weighting)
    process = make_process(options, SamplingOptions(sampling_timesteps=2), "latent")
    name, (x0, eps, said) = process.loss_config.objective, torch.randn(3, 5, L, D, dtype=torch.float64)
    t = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    level = broadcast_level(process.train_schedule, t, x0)
    z, goal = level.alpha * x0 + level.sigma * eps, target(name, x0, eps, level)
    loss = process.weight_losses((said - goal).square().mean((1, 2)), t)
    expected = (to_x0(name, said, z, level) - x0).square().mean((1, 2))
    torch.testing.assert_close(process.x0_errors(loss, t), expected)


def test_the_bound_of_a_learned_variance_has_a_thousandth_of_the_length_of_the_chain_as_its_weight():
    """Nichol & Dhariwal 2021: lambda = .001 for the bound as a sum over T steps, of which the loss is a mean."""
    chain = ProcessOptions(beta_schedule="cosine", timesteps=50)
    process = make_process(chain, SamplingOptions(sampling_timesteps=2), "latent")
    assert process.hybrid_weights(True) == {"variational_bound": pytest.approx(0.001 * 50)}
    assert process.hybrid_weights(False) == {}


@every_kind
def test_a_space_without_losses_adds_none(kind):
    _, step = make_step(kind, PlainSpace())
    assert not {"diffusion", "size", "token"} & step(0, 0)[1].keys()
    assert not step.additional_losses


@every_kind
def test_a_loss_term_is_added_with_its_weight_and_logged(kind, monkeypatch):
    plain = make_step(kind, PlainSpace())[1](0, 0)[0]
    monkeypatch.setitem(LOSS_TERMS, "size", LossTerm(lambda result: masked_mean(result.x0_hat**2, result.mask), 0.25))
    losses, logged = make_step(kind, PlainSpace())[1](0, 0)
    assert (logged["size"] > 0).all()
    torch.testing.assert_close(losses, plain + 0.25 * logged["size"])


def test_a_loss_term_is_added_on_token_embeddings_too(programs, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSS_TERMS, "one", LossTerm(lambda result: torch.ones_like(result.loss), 2.0))
    flags = "--latent_space embeddings --vocab_size 200 --config embedding_dim=16"
    assert programs.diffusion(flags, tmp_path / "run", "--timesteps 20") == 0
    lines = [line for line in read_metrics(tmp_path / "run") if "one" in line]
    assert len(lines) == 2
    for line in lines:
        assert line["loss"] == pytest.approx(line["diffusion"] + line["decoder_nll"] + line["tT_loss"] + 2, rel=1e-4)

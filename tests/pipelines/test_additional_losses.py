"""Additional losses: every training step of a denoiser adds the losses of the latent space and LOSS_TERMS."""

from __future__ import annotations

import pytest
import torch

from diffusion.loss import LOSS_TERMS, LossTerm
from diffusion.masking import masked_mean
from diffusion.options import ProcessOptions, SamplingOptions
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from model import make_denoiser
from model.options import DenoiserOptions
from pipelines.builders.diffusion_process import make_process
from pipelines.data.batch_sampler import TrainingSampler
from pipelines.steps.diffusion import DiffusionStep
from pipelines.steps.distillation import DistillationStep
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
    (losses - plain(0, 0)[0].detach()).sum().backward()
    assert denoiser.output_proj.weight.grad.abs().sum() > 0


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

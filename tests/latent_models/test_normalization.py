"""Statistics of latents against closed forms, and the coordinates they define."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latent_models.spaces.base import LatentSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace, count_lengths, estimate_mean_std
from utils.errors import UserError
from utils.records import Batch, Latents

B, L, D = 6, 5, 3


class Table(LatentSpace):
    """Latents looked up by token id; a real space without a language model."""

    def __init__(self, masked: bool = True, norm: float | None = None) -> None:
        super().__init__()
        self.length, self.dim, self.variable_length, self.norm = L, D, masked, norm
        self.table = nn.Embedding.from_pretrained(torch.randn(20, D, generator=torch.Generator().manual_seed(0)) + 2)
        self.received: dict = {}

    def encode(self, batch):
        x0 = self.table(batch.input_ids)
        return Latents(x0, batch.attention_mask, mean=x0 - 1)

    def decode(self, latents, **generate):
        nearest = torch.cdist(latents.x0, self.table.weight).argmin(-1)
        return [" ".join(map(str, row.tolist())) for row in nearest]

    def project(self, x0):
        return x0 if self.norm is None else nn.functional.normalize(x0, dim=-1) * self.norm

    def losses(self, batch, latents, x0_hat):
        return {"distance": (x0_hat - latents.x0).square().mean((1, 2)), "mean": latents.mean.mean((1, 2))}

    def fingerprint(self):
        return "table"


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, 20, (B, L), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.arange(L) < torch.tensor([5, 4, 1, 3, 5, 2])[:, None])


@pytest.fixture
def wrapped(batch):
    def of(**options) -> NormalizedSpace:
        space = Table(**options)
        statistics = LatentStatistics(D, L)
        mean, scale = estimate_mean_std([space.encode(batch)])
        statistics.mean.copy_(mean)
        statistics.scale.copy_(scale)
        return NormalizedSpace(space, statistics)

    return of


# ------------------------------------------------------------------------------------------------------- estimation


def test_statistics_are_mean_per_channel_and_one_population_deviation():
    x0 = torch.tensor([[[1.0, 10.0], [3.0, 10.0]], [[5.0, 40.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    mean, scale = estimate_mean_std([Latents(x0, mask)])
    assert mean.tolist() == [3.0, 20.0]
    # squares of the centered values: 4, 0, 4 and 100, 100, 400
    assert scale.item() == pytest.approx(math.sqrt((8 + 600) / 6))
    assert mean.dtype == scale.dtype == torch.float32 and scale.shape == ()


def test_statistics_of_a_known_distribution_however_it_is_split():
    g = torch.Generator().manual_seed(0)
    x0 = 5 * torch.randn(4000, 8, 2, generator=g) + torch.tensor([100.0, -3.0])
    mask = torch.rand(4000, 8, generator=g) < 0.7
    whole = Latents(torch.where(mask[..., None], x0, math.inf), mask)  # padding must not count
    mean, scale = estimate_mean_std([whole])
    torch.testing.assert_close(mean, torch.tensor([100.0, -3.0]), atol=0.15, rtol=0)
    assert scale.item() == pytest.approx(5, rel=0.01)
    parts = [whole[:7], whole[7:1000], whole[1000:]]
    for a, b in zip(estimate_mean_std(parts), (mean, scale), strict=True):
        torch.testing.assert_close(a, b)


def test_constant_latents_do_not_divide_by_zero():
    mean, scale = estimate_mean_std([Latents(torch.full((2, 3, D), 7.0), torch.ones(2, 3, dtype=torch.bool))])
    assert scale == 0
    statistics = LatentStatistics(D, L)
    statistics.mean.copy_(mean)
    statistics.scale.copy_(scale)
    space = NormalizedSpace(Table(), statistics)
    x = torch.full((2, L, D), 7.0)
    assert not space.normalize(Latents(x, torch.ones(2, L, dtype=torch.bool))).x0.any()


# ------------------------------------------------------------------------------------------------------ coordinates


def test_normalized_latents_are_centered_scaled_and_restored(wrapped, batch):
    space = wrapped()
    raw, latents = space.space.encode(batch), space.encode(batch)
    valid = latents.x0[latents.mask]
    torch.testing.assert_close(valid.mean(0), torch.zeros(D), atol=1e-6, rtol=0)
    assert valid.square().mean().item() == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(space.denormalize(latents.x0), raw.x0)
    torch.testing.assert_close(space.denormalize(latents.mean), raw.mean)
    assert torch.equal(latents.mask, batch.attention_mask)
    assert space.decode(latents) == space.space.decode(raw)


def test_losses_of_the_wrapped_space_are_computed_on_denormalized_latents(wrapped, batch):
    space = wrapped()
    raw, latents = space.space.encode(batch), space.encode(batch)
    x0_hat = torch.randn(B, L, D)
    inside = space.space.losses(batch, raw, space.denormalize(x0_hat))
    for name, loss in space.losses(batch, latents, x0_hat).items():
        torch.testing.assert_close(loss, inside[name])


def test_projection_is_that_of_the_wrapped_space(wrapped, batch):
    space = wrapped(norm=math.sqrt(D))
    x = torch.randn(B, L, D)
    projected = space.project(x)
    torch.testing.assert_close(space.denormalize(projected).norm(dim=-1), torch.full((B, L), math.sqrt(D)))
    torch.testing.assert_close(space.project(projected), projected)
    plain = wrapped()
    assert plain.project(x) is x  # without a projection not even rounded


def test_without_statistics_nothing_changes(batch):
    space = NormalizedSpace(Table(), LatentStatistics(D, L))
    assert torch.equal(space.encode(batch).x0, space.space.encode(batch).x0)


def test_statistics_travel_with_a_checkpoint(wrapped, batch):
    trained = wrapped()
    fresh = NormalizedSpace(Table(), LatentStatistics(D, L))
    fresh.statistics.load_state_dict(trained.statistics.state_dict())
    assert torch.equal(fresh.encode(batch).x0, trained.encode(batch).x0)
    assert set(trained.statistics.state_dict()) == {"mean", "scale", "length_counts"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_keep_their_dtype(wrapped, dtype):
    x = torch.randn(2, L, D, dtype=dtype)
    space = wrapped()
    latents = space.normalize(Latents(x, torch.ones(2, L, dtype=torch.bool)))
    assert latents.x0.dtype == dtype == space.denormalize(latents.x0).dtype


# ----------------------------------------------------------------------------------------------------- length prior


def test_lengths_of_samples_follow_those_of_the_training_texts():
    statistics = LatentStatistics(D, L)
    statistics.length_counts.copy_(count_lengths(torch.tensor([1] * 10 + [3] * 30 + [9] * 60), L))
    assert statistics.length_counts.tolist() == [0, 10, 0, 30, 0, 60]  # longer texts count as length L
    space = NormalizedSpace(Table(), statistics)
    mask = space.sample_mask(20_000, torch.Generator().manual_seed(0))
    assert mask.shape == (20_000, L) and mask.dtype == torch.bool
    assert not (~mask[:, :-1] & mask[:, 1:]).any(), "a mask is True from the first position on"
    shares = torch.bincount(mask.sum(1), minlength=L + 1) / len(mask)
    torch.testing.assert_close(shares, torch.tensor([0, 0.1, 0, 0.3, 0, 0.6]), atol=0.015, rtol=0)
    again = space.sample_mask(20_000, torch.Generator().manual_seed(0))
    assert torch.equal(mask, again)


def test_masks_follow_the_sources_and_fewer_sources_change_no_other():
    statistics = LatentStatistics(D, L, 6)
    space = NormalizedSpace(Table(), statistics)
    statistics.length_counts[1] = 1
    assert not space.has_pair_lengths

    def lengths(sources: list[int]) -> list[int]:
        generator = torch.Generator().manual_seed(3)
        return space.sample_mask(4, generator, torch.tensor(sources)).sum(1).tolist()

    assert lengths([2, 5, 2, 5]) == [1, 1, 1, 1], "without pairs, as of any text"
    counts = torch.zeros(7, L + 1)
    counts[2, 3], counts[5, 4], counts[5, 5] = 60, 30, 30
    statistics.pair_counts.copy_(counts)
    assert space.has_pair_lengths
    found = lengths([2, 5, 2, 5])
    assert found[0] == found[2] == 3 and {found[1], found[3]} <= {4, 5}
    assert lengths([2, 5]) == found[:2]


def test_latents_of_fixed_length_need_no_prior():
    space = NormalizedSpace(Table(masked=False), LatentStatistics(D, L))
    assert space.sample_mask(3, torch.Generator()).all()


def test_no_prior_and_empty_texts_are_refused_in_one_line():
    with pytest.raises(UserError, match="no length prior"):
        NormalizedSpace(Table(), LatentStatistics(D, L)).sample_mask(3, torch.Generator())
    with pytest.raises(UserError, match="2 training texts hold no tokens"):
        count_lengths(torch.tensor([0, 3, 0]), L)

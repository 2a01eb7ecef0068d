"""Rows and random numbers of a step do not depend on how its batch is split over ranks and micro-batches."""

from __future__ import annotations

import pytest
import torch

from pipelines.data.batch_sampler import TrainingSampler, ValidationSampler, batch_indices, epoch_order
from utils.errors import UserError


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (7, 7), (3, 10), (1, 4), (12, 5)])
def test_every_row_comes_once_per_epoch(n: int, batch: int) -> None:
    steps = 4 * n
    stream = torch.cat([batch_indices(5, step, batch, n) for step in range(steps)])
    assert len(stream) == steps * batch
    for epoch in range(steps * batch // n):
        rows = stream[epoch * n : (epoch + 1) * n]
        assert rows.sort().values.tolist() == list(range(n))
        assert torch.equal(rows, epoch_order(5, epoch, n))


def test_rows_of_a_step_depend_on_seed_and_step_alone() -> None:
    rows = batch_indices(1, 1000, 8, 100)
    assert torch.equal(rows, batch_indices(1, 1000, 8, 100))
    assert not torch.equal(rows, batch_indices(2, 1000, 8, 100))
    epoch_order(1, 80, 100).zero_()  # a caller may change the tensor that it got
    assert torch.equal(rows, batch_indices(1, 1000, 8, 100))


def test_a_batch_of_an_empty_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        batch_indices(0, 0, 4, 0)


def test_micro_batches_of_all_ranks_cover_the_global_batch_once() -> None:
    whole = TrainingSampler(1, 8)
    ranks = [TrainingSampler(1, 2, accumulate=2, rank=rank, world_size=2) for rank in (0, 1)]
    rows = torch.cat([sampler.rows(3, micro, 20) for micro in (0, 1) for sampler in ranks])
    assert torch.equal(rows, whole.rows(3, 0, 20))
    noise = torch.cat([sampler.rng(3, micro).normal("noise", 2) for micro in (0, 1) for sampler in ranks])
    assert torch.equal(noise, whole.rng(3, 0).normal("noise", 2))


@pytest.mark.parametrize("batch, world_size", [(16, 1), (3, 1), (2, 3), (8, 3)])
def test_validation_rows_and_noise_depend_on_no_step_batch_size_or_rank(batch: int, world_size: int) -> None:
    samplers = [ValidationSampler(batch, 13, rank, world_size) for rank in range(world_size)]
    alone = ValidationSampler(40, 13)
    parts = [(sampler, micro) for micro in range(13) for sampler in samplers if micro in sampler.micro_batches]
    rows = torch.cat([sampler.rows(7, micro, 40) for sampler, micro in parts])
    assert torch.equal(rows, alone.rows(0, 0, 40)) and len(rows.unique()) == 13
    noise = torch.cat([sampler.rng(7, micro).normal("noise", 2) for sampler, micro in parts])
    assert torch.equal(noise, alone.rng(0, 0).normal("noise", 2))


def test_validation_rows_are_those_of_a_fixed_seed() -> None:
    """The rows are listed here: a change would make the curves of old and new runs differ."""
    assert ValidationSampler(40, 5).rows(0, 0, 40).tolist() == [23, 28, 16, 22, 1]

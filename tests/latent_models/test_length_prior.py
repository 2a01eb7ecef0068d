"""The prior of text lengths given the length of a source: counts, neighboring lengths, sampling by inversion."""

from __future__ import annotations

import pytest
import torch

from latent_models.spaces.length_prior import count_pairs, counts_near_source_length, sample_length

S, L = 6, 8


def test_pairs_are_counted_and_longer_lengths_count_as_the_longest():
    counts = count_pairs(torch.tensor([2, 2, 99]), torch.tensor([3, 3, 99]), torch.Size((S + 1, L + 1)))
    assert counts[2, 3] == 2 and counts[S, L] == 1 and counts.sum() == 3


def test_counts_of_neighboring_source_lengths_are_added_until_there_are_enough():
    counts = torch.zeros(S + 1, L + 1)
    counts[1, 2], counts[3, 4], counts[5, 7] = 10, 1, 20
    given = counts_near_source_length(counts, torch.tensor([1, 3, 5, 99, 0]), enough=10)
    assert given[0].nonzero().flatten().tolist() == [2]
    assert given[1].nonzero().flatten().tolist() == [2, 4, 7], "too few of its own, so both neighbors count"
    assert given[2].nonzero().flatten().tolist() == [7]
    assert given[3].nonzero().flatten().tolist() == [7], "a longer source counts as the longest"
    assert given[4].nonzero().flatten().tolist() == [2]
    every = counts_near_source_length(counts, torch.tensor([3]), enough=1000)
    assert torch.equal(every[0], counts.sum(0)), "with too few in all, every pair counts"


def test_sampled_lengths_follow_the_counts_and_never_have_a_count_of_zero():
    counts = torch.tensor([[0.0, 1, 0, 3], [0, 0, 5, 0]])
    for uniform, wanted in ((0.0, [1, 2]), (0.249, [1, 2]), (0.25, [3, 2]), (1 - 1e-7, [3, 2])):
        assert sample_length(counts, torch.full((2,), uniform)).tolist() == wanted
    many = sample_length(counts[:1].expand(20_000, -1), torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    assert (many == 3).double().mean() == pytest.approx(0.75, abs=0.01)

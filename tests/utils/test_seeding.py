"""Random numbers are functions of (seed, step, purpose), and do not depend on how a batch is sliced."""

from __future__ import annotations

import pytest
import torch

from utils.seeding import LARGEST_ON_CPU, WIDEST_ON_CPU, StepRNG, derive_seed, noise_device, seeded_generator


def test_derived_seeds_are_stable_over_processes_and_versions():
    # A constant, not a comparison of two calls: if it changes, no older run can be resumed to the last bit.
    assert derive_seed(42, "noise", 7) == 7651511418670637614


def test_parts_of_a_name_are_separated():
    seeds = [
        derive_seed(1, 23),
        derive_seed(12, 3),
        derive_seed(1, "23"),
        derive_seed(1, 2, 3),
        derive_seed(1, "2", "3"),
        derive_seed(1, "2:3"),
        derive_seed(1),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_slices_join_to_the_global_batch(parts):
    total, rows = 16, 16 // parts
    whole = StepRNG(3, 5, total, 0, total)
    sliced = [StepRNG(3, 5, total, i * rows, (i + 1) * rows) for i in range(parts)]
    for draw in (
        lambda d: d.normal("eps", 4, 2),
        lambda d: d.uniform("drop"),
        lambda d: d.select_mask("self", 0.3),
        lambda d: d.sample_global(lambda n, g: torch.rand(n, generator=g), "t"),
    ):
        joined = torch.cat([draw(d) for d in sliced])
        assert torch.equal(joined, draw(whole)) and len(joined) == total


def test_draws_differ_by_step_seed_and_purpose_and_repeat():
    def eps(seed=1, step=1, purpose="eps"):
        return StepRNG(seed, step, 4, 0, 4).normal(purpose, 8)

    assert torch.equal(eps(), eps())
    others = [eps(seed=2), eps(step=2), eps(purpose="t")]
    for i, a in enumerate([eps(), *others]):
        assert not any(torch.equal(a, b) for b in others[i:])


@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 10, 17, 64, 100])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.637, 0.9, 0.999, 1.0])
def test_exactly_the_rounded_fraction_is_selected(total, fraction):
    for step in range(3):
        assert StepRNG(0, step, total, 0, total).select_mask("x", fraction).sum() == round(fraction * total)


@pytest.mark.parametrize(("fraction", "block"), [(0.5, 2), (0.9, 10), (0.25, 4), (0.1, 10)])
def test_aligned_slices_have_equal_counts_and_every_row_is_selected_at_some_step(fraction, block):
    total, turns = 40, torch.zeros(40)
    for step in range(300):
        chosen = StepRNG(0, step, total, 0, total).select_mask("x", fraction)
        assert (chosen.view(-1, block).sum(1) == round(fraction * block)).all()
        turns += chosen
    assert (turns / 300 - fraction).abs().max() < 0.15


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("start", "stop"), [(0, 100), (10, 50), (13, 29), (64, 100), (7, 8), (5, 5)])
def test_select_rows_has_a_fixed_size_and_contains_every_selected_row(fraction, start, stop):
    counts, most = set(), 0
    for step in range(200):
        rng = StepRNG(0, step, 100, start, stop)
        mask, rows = rng.select_rows("x", fraction)
        assert torch.equal(mask, rng.select_mask("x", fraction))
        assert torch.equal(rows[: mask.sum()], mask.nonzero()[:, 0]) and len(rows.unique()) == len(rows)
        counts.add(len(rows))
        most = max(most, int(mask.sum()))
    assert counts == {most}, "the size is the largest number of selected rows of any step"


def test_a_fraction_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        StepRNG(0, 0, 4, 0, 4).select_mask("x", 1.5)


def test_rows_slices_every_part_of_a_tuple():
    t, weight = StepRNG(0, 0, 6, 2, 5).sample_global(lambda n, g: (torch.rand(n, generator=g), torch.ones(n)), "t")
    whole = torch.rand(6, generator=seeded_generator(0, 0, "t"))
    assert torch.equal(t, whole[2:5]) and weight.shape == (3,)


def test_noise_has_the_moments_of_its_distribution():
    x = StepRNG(0, 0, 100, 0, 100).normal("eps", 1000)
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01


@pytest.mark.parametrize("kind", ["cpu", "cuda:1", "mps", "meta"])
def test_noise_is_drawn_on_the_cpu_except_that_of_wide_latents_on_cuda(kind):
    device, cpu = torch.device(kind), torch.device("cpu")
    assert noise_device(device, WIDEST_ON_CPU, 512) == noise_device(kind, 1, 10**6) == cpu
    assert noise_device(device, WIDEST_ON_CPU + 1, 512) == (device if device.type == "cuda" else cpu)


@pytest.mark.parametrize("kind", ["cpu", "cuda:1"])
def test_noise_of_a_few_numbers_is_drawn_on_the_cpu_whatever_its_channels(kind):
    """A single vector of 384 channels is .5 ms for a batch of 250, which a step of any size hides."""
    device, cpu = torch.device(kind), torch.device("cpu")
    assert noise_device(device, 384, 1) == noise_device(device, LARGEST_ON_CPU, 1) == cpu
    assert noise_device(device, LARGEST_ON_CPU + 1, 1) == noise_device(device, 384, 2) == device

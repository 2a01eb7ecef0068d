from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.importance_sampling import LossSecondMoment, sample_bins, sample_fixstep

CASES = [(None, None), (7, None), (40, None), (40, 8), (2000, 100)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nodes(timesteps: int) -> torch.Tensor:
    return (torch.arange(timesteps) + 1) / timesteps


def loss_at(t: torch.Tensor) -> torch.Tensor:
    return 0.1 + 3 * t**2


def warmed(timesteps, bins, rounds: int = 10) -> LossSecondMoment:
    times = LossSecondMoment(timesteps, bins=bins)
    everywhere = nodes(timesteps) if timesteps else (torch.arange(100) + 0.5) / 100
    for _ in range(rounds):
        times.update(everywhere, loss_at(everywhere))
    return times


@pytest.mark.parametrize(("timesteps", "bins"), CASES)
def test_uniform_until_every_bin_is_full(timesteps, bins):
    times = LossSecondMoment(timesteps, bins=bins)
    everywhere = nodes(timesteps) if timesteps else (torch.arange(100) + 0.5) / 100
    even = torch.full((times.cells,), 1 / times.cells)
    rest = torch.tensor([1.0 if timesteps else 0.999])  # the last cell's own
    for _ in range(10):
        torch.testing.assert_close(times.probabilities(), even)
        t, weight = times(200, seeded(), timesteps=timesteps)
        torch.testing.assert_close(weight, torch.ones(200))
        assert (t > 0).all() and (t <= 1).all()
        seen = everywhere[times.bin_of < times.bins - 1]  # all bins but the last
        times.update(seen, loss_at(seen))
    for _ in range(10):
        times.update(rest, loss_at(rest))
    assert not torch.allclose(times.probabilities(), even)


@pytest.mark.parametrize(("timesteps", "bins"), CASES)
def test_probabilities_are_the_root_second_moment_mixed_with_uniform(timesteps, bins):
    times = warmed(timesteps, bins)
    cells = times.cells
    losses = loss_at(nodes(cells) if timesteps else (torch.arange(cells) + 0.5) / cells)
    # ten rounds fill a history with the last ten losses of a bin, step after step
    last = torch.stack([losses[times.bin_of == b].repeat(10)[-10:] for b in range(times.bins)])
    root = last.square().mean(1).sqrt()[times.bin_of]
    torch.testing.assert_close(times.probabilities(), 0.999 * root / root.sum() + 0.001 / cells)
    assert times.probabilities().sum() == pytest.approx(1, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(case=st.sampled_from(CASES), max_time=st.sampled_from([1.0, 0.5, 0.23]), seed=st.integers(0, 99))
def test_the_weighted_mean_loss_equals_the_uniform_mean(case, max_time, seed):
    """Also where the range is limited: the mean over it, with fewer large errors than uniform times make."""
    timesteps, bins = case
    times = warmed(timesteps, bins)
    t, weight = times(20_000, seeded(seed), max_time=max_time, timesteps=timesteps)
    if timesteps:
        allowed = nodes(timesteps)[: max(1, round(max_time * timesteps))]
        assert torch.isin(t, allowed).all()
        expected = loss_at(allowed).mean()
    else:
        assert ((t >= 0) & (t <= max_time)).all()
        expected = torch.tensor(0.1 + max_time**2)
    torch.testing.assert_close((weight * loss_at(t)).mean(), expected, atol=0, rtol=0.01)
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_draws_follow_the_probabilities():
    times = warmed(7, None)
    t, weight = times(70_000, seeded(), timesteps=7)
    share = torch.bincount((7 * t).round().long() - 1, minlength=7) / 70_000
    torch.testing.assert_close(share, times.probabilities(), atol=1e-3, rtol=0)
    torch.testing.assert_close(weight, (1 / 7 / times.probabilities())[(7 * t).round().long() - 1])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_histories_equal_those_of_a_loop_over_the_losses(data):
    """Vectorised: any batch, with times that repeat, in any number of updates, leaves the last ten losses of each."""
    timesteps, history = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    bins = data.draw(st.integers(1, timesteps))
    times = LossSecondMoment(timesteps, bins=bins, history=history)
    seen: list[list[float]] = [[] for _ in range(bins)]
    for _ in range(data.draw(st.integers(1, 4))):
        steps = data.draw(st.lists(st.integers(0, timesteps - 1), max_size=12))
        losses = [data.draw(st.sampled_from([0.5, 1.0, 2.0, 3.0, float("nan"), float("inf")])) for _ in steps]
        times.update((torch.tensor(steps, dtype=torch.float64) + 1) / timesteps, torch.tensor(losses))
        for i, loss in zip(steps, losses, strict=True):
            if loss < 10:
                seen[i * bins // timesteps].append(loss)
    for b in range(bins):
        assert times.counts[b] == len(seen[b])
        filled = times.losses[b][: min(history, len(seen[b]))]
        assert sorted(filled.tolist()) == sorted(seen[b][-history:])
    p = times.probabilities()
    assert p.isfinite().all() and p.sum() == pytest.approx(1, abs=1e-5) and (p > 0).all()


def test_a_split_batch_and_a_restored_state_give_the_same_draws():
    whole, parts = LossSecondMoment(5), LossSecondMoment(5)
    t, loss = nodes(5).repeat(20), torch.rand(100, generator=seeded())
    whole.update(t, loss)
    for part in (slice(0, 13), slice(13, 60), slice(60, 100)):
        parts.update(t[part], loss[part])
    fresh = LossSecondMoment(5)
    fresh.load_state_dict(parts.state_dict())
    for other in (parts, fresh):
        assert torch.equal(other.probabilities(), whole.probabilities())
        draws = [x(64, seeded(3), timesteps=5) for x in (whole, other)]
        assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    fresh.update(t, loss + 1)
    assert torch.equal(parts.probabilities(), whole.probabilities()), "the state is a copy"


def test_draws_depend_on_the_generator_alone_and_are_in_random_order():
    times = warmed(40, None)
    before = torch.get_rng_state()
    assert torch.equal(times(64, seeded(1), timesteps=40)[0], times(64, seeded(1), timesteps=40)[0])
    assert not torch.equal(times(64, seeded(1), timesteps=40)[0], times(64, seeded(2), timesteps=40)[0])
    t, _ = times(64, seeded(1), timesteps=40)
    assert not torch.equal(t, t.sort().values)
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_losses_stay_uniform():
    times = LossSecondMoment(4)
    for _ in range(10):
        times.update(nodes(4), torch.zeros(4))
    torch.testing.assert_close(times.probabilities(), torch.full((4,), 0.25))


@pytest.mark.parametrize("timesteps", [None, 2000, 7])
def test_fixstep_draws_the_noisy_half_half_as_often(timesteps):
    t, weight = sample_fixstep(30_000, seeded(), timesteps=timesteps)
    cells = timesteps or 100
    half = (cells // 2) / cells
    noisy = t > half + 1e-6 if timesteps else t >= half
    share = 0.5 * (1 - half) / (half + 0.5 * (1 - half))
    assert float(noisy.float().mean()) == pytest.approx(share, abs=2e-3)
    assert weight.unique().numel() == 2 and float(weight.mean()) == pytest.approx(1, abs=0.01)
    assert float((weight * loss_at(t)).mean()) == pytest.approx(
        float(loss_at(nodes(timesteps)).mean()) if timesteps else 1.1, rel=0.02
    )


def test_within_a_cell_of_continuous_time_draws_are_uniform():
    p = torch.tensor([0.7, 0.2, 0.1])
    t, _ = sample_bins(p, 30_000, seeded())
    for c, share in enumerate(p):
        inside = t[(3 * t).floor() == c] * 3 - c
        assert len(inside) == pytest.approx(30_000 * float(share), rel=0.01)
        torch.testing.assert_close(torch.histc(inside, 5, 0, 1) / len(inside), torch.full((5,), 0.2), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSecondMoment(10, history=0), "history 0"),
        (lambda: LossSecondMoment(10, uniform=0.0), "uniform"),
        (lambda: LossSecondMoment(10)(4, seeded(), timesteps=20), "T = 20"),
        (lambda: LossSecondMoment(10).load_state_dict(LossSecondMoment(12).state_dict()), "12 x 10"),
    ],
)
def test_an_invalid_use_is_a_one_line_error(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_host_never_waits_for_the_gpu():
    times = LossSecondMoment(40, device="cuda")
    generator, t, loss = torch.Generator("cuda").manual_seed(0), nodes(40).cuda(), torch.rand(40).cuda()
    times.update(t, loss)
    times(8, generator, timesteps=40)
    torch.cuda.set_sync_debug_mode("error")
    try:
        times.update(t, loss)
        times(8, generator, timesteps=40)
    finally:
        torch.cuda.set_sync_debug_mode("default")

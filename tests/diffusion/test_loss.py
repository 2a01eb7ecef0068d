from __future__ import annotations

from functools import partial

import pytest
import torch

from diffusion.discrete_schedules import make_discrete_schedule
from diffusion.loss import (
    LOSS_TERMS,
    LOSSES,
    LossConfig,
    LossTerm,
    corrupt,
    denoising_loss,
    first_step_targets,
    get_loss_fn,
    loss_terms,
    masked_mean,
    prediction_loss,
    self_condition,
    term_weights,
    tT_loss,
    weighted_total,
)
from diffusion.objectives import TARGETS, target, to_x0
from diffusion.schedules import broadcast_level, make_continuous_schedule

SCHEDULE = make_continuous_schedule("cosine")


def example(rows: int = 4, length: int = 5, width: int = 3):
    generator = torch.Generator().manual_seed(2)
    x0, eps = (torch.randn(rows, length, width, generator=generator) for _ in range(2))
    mask = torch.arange(length) < torch.arange(1, rows + 1)[:, None]  # 1, 2, ... valid positions
    return x0, eps, mask, torch.linspace(0, 1, rows)


def loss_of(
    network, x0, mask, schedule, objective, loss_type, t, eps, *, self_cond=None, time_input="alpha_bar", **other
):
    config = LossConfig(schedule, objective, loss_type, time_input)
    return denoising_loss(lambda rows: network, x0, t, eps, config, mask=mask, self_cond=self_cond, **other).loss


def test_masked_mean_counts_valid_positions_once_each():
    x0, _, mask, _ = example()
    expected = torch.stack([x[m].mean() for x, m in zip(x0, mask, strict=True)])
    torch.testing.assert_close(masked_mean(x0, mask), expected)
    torch.testing.assert_close(masked_mean(x0, torch.ones_like(mask)), masked_mean(x0, None))
    assert masked_mean(x0, torch.zeros_like(mask)).tolist() == [0.0] * 4
    assert masked_mean(x0[:, :1], mask[:, :1]).shape == (4,)


def test_masks_need_not_be_prefixes():
    x = torch.tensor([[[1.0], [2.0], [30.0]]])
    assert masked_mean(x, torch.tensor([[True, False, True]])).item() == 15.5


@pytest.mark.parametrize("objective", TARGETS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_padding_changes_neither_loss_nor_gradient(objective, loss_type):
    x0, eps, mask, t = example()
    scale = torch.tensor(0.7, requires_grad=True)

    def outcome(x0, eps):
        loss = loss_of(lambda z, *_: scale * z, x0, mask, SCHEDULE, objective, loss_type, t, eps)
        return loss, torch.autograd.grad(loss.sum(), scale)[0]

    padding = ~mask[..., None]
    loss, grad_log_prob = outcome(x0, eps)
    other_loss, other_gradient = outcome(x0.masked_fill(padding, 1e3), eps.masked_fill(padding, -7))
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(grad_log_prob, other_gradient)
    assert loss.shape == (4,)


def test_nan_at_padding_has_no_effect():
    x0, eps, mask, t = example()
    x0 = x0.masked_fill(~mask[..., None], torch.nan)
    assert loss_of(lambda z, *_: z, x0, mask, SCHEDULE, "v", "l2", t, eps).isfinite().all()


@pytest.mark.parametrize("objective", TARGETS)
def test_the_target_matches_the_objective(objective):
    """A network that predicts the target has the loss 0; the loss of another prediction is that of the table."""
    x0, eps, mask, t = example()
    level = broadcast_level(SCHEDULE, t, x0)
    goal = target(objective, x0, eps, level)
    for loss_type in LOSSES:
        zero = loss_of(lambda z, *_: goal, x0, mask, SCHEDULE, objective, loss_type, t, eps)
        assert zero.tolist() == [0.0] * 4
        off_by_two = prediction_loss(goal + 2, x0, eps, level, objective, loss_type, mask)
        expected = {"l1": 2.0, "l2": 4.0, "smooth_l1": 1.5}[loss_type]
        torch.testing.assert_close(off_by_two, torch.full((4,), expected))


def test_the_network_receives_z_time_and_the_estimates_of_the_selected_rows():
    x0, eps, mask, t = example()
    seen = {}

    def network(z, time, x0_self_cond=None, self_cond_mask=None):
        seen.update(z=z, time=time, x0_self_cond=x0_self_cond, self_cond_mask=self_cond_mask)
        return z

    selected = torch.tensor([True, False, False, True]), torch.tensor([0, 3])
    loss_of(network, x0, mask, SCHEDULE, "x0", "l2", t, eps, self_cond=selected)
    assert torch.equal(seen["z"], corrupt(x0, eps, broadcast_level(SCHEDULE, t, x0)))
    torch.testing.assert_close(seen["time"], SCHEDULE(t).alpha ** 2)
    assert torch.equal(seen["x0_self_cond"][[0, 3]], seen["z"][[0, 3]])  # this network estimates z itself
    assert not seen["x0_self_cond"][[1, 2]].any() and torch.equal(seen["self_cond_mask"], selected[0])
    loss_of(network, x0, mask, make_discrete_schedule("linear", 4), "eps", "l2", t, eps, time_input="index")
    torch.testing.assert_close(seen["time"], (t - 0.25).clamp(min=0))


def test_estimates_are_perturbed_by_a_share_of_the_noise_of_their_text():
    x0, eps, mask, t = example()
    noise, seen = torch.randn_like(x0), {}

    def network(z, time, x0_self_cond=None, self_cond_mask=None):
        seen.update(z=z, x0_self_cond=x0_self_cond)
        return z

    selected = torch.tensor([True, False, False, True]), torch.tensor([0, 3])
    loss_of(network, x0, mask, SCHEDULE, "x0", "l2", t, eps, self_cond=selected, estimate_noise=0.3 * noise)
    perturbed = (seen["x0_self_cond"] - seen["z"])[[0, 3]]
    torch.testing.assert_close(perturbed, (0.3 * SCHEDULE(t).sigma[:, None, None] * noise)[[0, 3]].to(perturbed))


def test_a_bfloat16_prediction_gives_a_float32_loss():
    x0, eps, mask, t = example()
    loss = loss_of(lambda z, *_: z.bfloat16(), x0, mask, SCHEDULE, "x0", "l2", t, eps)
    assert loss.dtype == torch.float32


def test_losses_do_not_depend_on_the_other_rows_of_the_batch():
    x0, eps, mask, t = example()
    whole = loss_of(lambda z, *_: z, x0, mask, SCHEDULE, "v", "smooth_l1", t, eps)
    parts = [
        loss_of(lambda z, *_: z, x0[r], mask[r], SCHEDULE, "v", "smooth_l1", t[r], eps[r])
        for r in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole, torch.cat(parts), atol=0, rtol=1e-6)


def test_tT_loss_is_the_signal_at_t_1():
    x0, _, mask, _ = example()
    chain = make_discrete_schedule("linear", 100)
    torch.testing.assert_close(tT_loss(chain, x0, mask), chain(torch.tensor(1.0)).alpha ** 2 * masked_mean(x0**2, mask))


def test_an_unknown_loss_type_is_an_error():
    assert get_loss_fn("l1")(torch.zeros(2), torch.ones(2)).tolist() == [1.0, 1.0]
    assert get_loss_fn("l2")(torch.zeros(2), 2 * torch.ones(2)).tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match="huber"):
        get_loss_fn("huber")


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_the_target_of_the_first_step_is_the_mean_for_every_objective(objective):
    chain = make_discrete_schedule("sqrt", 20)
    x0, eps, mask, _ = example()
    mean, t = x0 + 0.3 * eps.flip(0), torch.tensor([1, 2, 1, 20]) / 20
    level = broadcast_level(chain, t, x0)
    x0_aim, eps_aim = first_step_targets(x0, eps, mean, level, t, 20)
    z_t = corrupt(x0, eps, level)
    torch.testing.assert_close(corrupt(x0_aim, eps_aim, level), z_t)
    assert torch.equal(x0_aim[[0, 2]], mean[[0, 2]]) and torch.equal(x0_aim[[1, 3]], x0[[1, 3]])
    assert torch.equal(eps_aim[[1, 3]], eps[[1, 3]])
    said = target(objective, x0_aim, eps_aim, level)
    torch.testing.assert_close(to_x0(objective, said, z_t, level), x0_aim, atol=1e-4, rtol=1e-4)
    padded = mean.masked_fill(~mask[..., None], 1e3)
    for expected in (mean, padded):
        pair = first_step_targets(x0, eps, expected, level, t, 20)
        assert prediction_loss(said, *pair, level, objective, "l2", mask).max() < 1e-6


def test_self_condition_estimates_the_selected_rows_without_gradient():
    x0, _, _, t = example()
    z_t = x0.requires_grad_()
    estimate = self_condition(lambda z, t, x0_prev: 2 * z + t[:, None, None], z_t, t, torch.tensor([3, 1]))
    assert torch.equal(estimate[[1, 3]], 2 * z_t[[1, 3]] + t[[1, 3], None, None])
    assert not estimate[[0, 2]].any() and not estimate.requires_grad


def always(prediction, *_):
    return prediction


def test_the_estimate_of_x0_inverts_the_prediction():
    x0, eps, mask, _ = example()
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    level = broadcast_level(SCHEDULE, t, x0)
    for objective in TARGETS:
        exact = partial(always, target(objective, x0, eps, level))
        config = LossConfig(SCHEDULE, objective)
        result = denoising_loss(lambda rows, exact=exact: exact, x0, t, eps, config, mask=mask, with_x0_hat=True)
        torch.testing.assert_close(result.x0_hat, x0, atol=1e-4, rtol=1e-4)
        assert denoising_loss(lambda rows, exact=exact: exact, x0, t, eps, config, mask=mask).x0_hat is None


def test_a_row_of_loss_terms_is_computed_with_its_weight(monkeypatch):
    x0, eps, mask, t = example()
    monkeypatch.setitem(LOSS_TERMS, "size", LossTerm(lambda result: masked_mean(result.x0_hat**2, result.mask), 0.5))
    weights = term_weights()
    assert weights == {"size": 0.5}  # tT_loss has the weight 0 unless a step sets another
    assert term_weights({"tT_loss": 2.0, "of a space": 3.0}) == {"size": 0.5, "tT_loss": 2.0}
    config = LossConfig(SCHEDULE, "x0")
    result = denoising_loss(lambda rows: lambda z, *_: z, x0, t, eps, config, mask=mask, with_x0_hat=True)
    terms = loss_terms(result, weights) | {"other": torch.ones(4)}
    torch.testing.assert_close(weighted_total(result.loss, terms, weights), result.loss + 0.5 * terms["size"] + 1)

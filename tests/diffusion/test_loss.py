from __future__ import annotations

import pytest
import torch

from diffusion import options
from diffusion.chains import make_discrete
from diffusion.loss import (
    ERRORS,
    aimed_at_mean,
    diffuse,
    diffusion_loss,
    elementwise,
    masked_mean,
    prediction_loss,
    terminal_mean_loss,
)
from diffusion.objectives import TARGETS, target, to_x0
from diffusion.schedules import level_at, make_continuous

SCHEDULE = make_continuous("cosine")


def example(rows: int = 4, length: int = 5, width: int = 3):
    generator = torch.Generator().manual_seed(2)
    x0, eps = (torch.randn(rows, length, width, generator=generator) for _ in range(2))
    mask = torch.arange(length) < torch.arange(1, rows + 1)[:, None]  # 1, 2, ... valid positions
    return x0, eps, mask, torch.linspace(0, 1, rows)


def test_the_flags_offer_the_losses_there_are():
    choices = options.ProcessOptions.__dataclass_fields__["loss_type"].metadata["choices"]
    assert set(choices) == set(ERRORS)


def test_masked_mean_counts_valid_positions_once_each():
    x0, _, mask, _ = example()
    wanted = torch.stack([x[m].mean() for x, m in zip(x0, mask, strict=True)])
    torch.testing.assert_close(masked_mean(x0, mask), wanted)
    torch.testing.assert_close(masked_mean(x0, torch.ones_like(mask)), masked_mean(x0, None))
    assert masked_mean(x0, torch.zeros_like(mask)).tolist() == [0.0] * 4
    assert masked_mean(x0[:, :1], mask[:, :1]).shape == (4,)


def test_masks_need_not_be_prefixes():
    x = torch.tensor([[[1.0], [2.0], [30.0]]])
    assert masked_mean(x, torch.tensor([[True, False, True]])).item() == 15.5


@pytest.mark.parametrize("objective", TARGETS)
@pytest.mark.parametrize("loss_type", ERRORS)
def test_padding_changes_neither_loss_nor_gradient(objective, loss_type):
    x0, eps, mask, t = example()
    scale = torch.tensor(0.7, requires_grad=True)

    def outcome(x0, eps):
        loss = diffusion_loss(lambda z, time, prev: scale * z, x0, mask, SCHEDULE, objective, loss_type, t, eps)
        return loss, torch.autograd.grad(loss.sum(), scale)[0]

    padding = ~mask[..., None]
    loss, gradient = outcome(x0, eps)
    other_loss, other_gradient = outcome(x0.masked_fill(padding, 1e3), eps.masked_fill(padding, -7))
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(gradient, other_gradient)
    assert loss.shape == (4,)


def test_not_even_nan_leaks_from_padding():
    x0, eps, mask, t = example()
    x0 = x0.masked_fill(~mask[..., None], torch.nan)
    assert diffusion_loss(lambda z, time, prev: z, x0, mask, SCHEDULE, "v", "l2", t, eps).isfinite().all()


@pytest.mark.parametrize("objective", TARGETS)
def test_the_target_matches_the_objective(objective):
    """A network that says exactly what is asked has no loss; the loss is that of the table otherwise."""
    x0, eps, mask, t = example()
    level = level_at(SCHEDULE, t, x0)
    wanted = target(objective, x0, eps, level)
    for loss_type in ERRORS:
        told = diffusion_loss(lambda z, time, prev: wanted, x0, mask, SCHEDULE, objective, loss_type, t, eps)
        assert told.tolist() == [0.0] * 4
        off_by_two = prediction_loss(wanted + 2, x0, eps, level, objective, loss_type, mask)
        expected = {"l1": 2.0, "l2": 4.0, "smooth_l1": 1.5}[loss_type]
        torch.testing.assert_close(off_by_two, torch.full((4,), expected))


def test_the_network_is_shown_z_time_and_the_estimate_before():
    x0, eps, mask, t = example()
    seen = {}

    def network(z, time, x0_prev):
        seen.update(z=z, time=time, x0_prev=x0_prev)
        return z

    diffusion_loss(network, x0, mask, SCHEDULE, "eps", "l2", t, eps, x0_prev=x0 / 2)
    assert torch.equal(seen["z"], diffuse(x0, eps, level_at(SCHEDULE, t, x0)))
    torch.testing.assert_close(seen["time"], SCHEDULE(t).alpha ** 2)
    assert torch.equal(seen["x0_prev"], x0 / 2)
    diffusion_loss(network, x0, mask, make_discrete("linear", 4), "eps", "l2", t, eps, time_input="index")
    torch.testing.assert_close(seen["time"], (t - 0.25).clamp(min=0))


def test_a_lowered_prediction_is_judged_in_the_precision_of_the_data():
    x0, eps, mask, t = example()
    loss = diffusion_loss(lambda z, time, prev: z.bfloat16(), x0, mask, SCHEDULE, "x0", "l2", t, eps)
    assert loss.dtype == torch.float32


def test_losses_do_not_depend_on_who_else_is_in_the_batch():
    x0, eps, mask, t = example()
    whole = diffusion_loss(lambda z, time, prev: z, x0, mask, SCHEDULE, "v", "smooth_l1", t, eps)
    parts = [
        diffusion_loss(lambda z, time, prev: z, x0[r], mask[r], SCHEDULE, "v", "smooth_l1", t[r], eps[r])
        for r in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(whole, torch.cat(parts), atol=0, rtol=1e-6)


def test_terminal_mean_is_what_is_left_of_the_data_at_the_end():
    x0, _, mask, _ = example()
    chain = make_discrete("linear", 100)
    torch.testing.assert_close(
        terminal_mean_loss(chain, x0, mask), chain(torch.tensor(1.0)).alpha ** 2 * masked_mean(x0**2, mask)
    )


def test_an_unknown_loss_is_refused():
    assert elementwise("l1")(torch.zeros(2), torch.ones(2)).tolist() == [1.0, 1.0]
    assert elementwise("l2")(torch.zeros(2), 2 * torch.ones(2)).tolist() == [4.0, 4.0]
    with pytest.raises(ValueError, match="huber"):
        elementwise("huber")


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
def test_the_first_step_aims_at_the_mean_of_x0_whatever_the_objective(objective):
    chain = make_discrete("sqrt", 20)
    x0, eps, mask, _ = example()
    mean, t = x0 + 0.3 * eps.flip(0), torch.tensor([1, 2, 1, 20]) / 20
    level = level_at(chain, t, x0)
    x0_aim, eps_aim = aimed_at_mean(x0, eps, mean, level, t, 20)
    z_t = diffuse(x0, eps, level)
    torch.testing.assert_close(diffuse(x0_aim, eps_aim, level), z_t)
    assert torch.equal(x0_aim[[0, 2]], mean[[0, 2]]) and torch.equal(x0_aim[[1, 3]], x0[[1, 3]])
    assert torch.equal(eps_aim[[1, 3]], eps[[1, 3]])
    said = target(objective, x0_aim, eps_aim, level)
    torch.testing.assert_close(to_x0(objective, said, z_t, level), x0_aim, atol=1e-4, rtol=1e-4)
    padded = mean.masked_fill(~mask[..., None], 1e3)
    for wanted in (mean, padded):
        pair = aimed_at_mean(x0, eps, wanted, level, t, 20)
        assert prediction_loss(said, *pair, level, objective, "l2", mask).max() < 1e-6

"""Averaged weights follow their recurrence; weight decay groups, schedules and clipping follow their definitions."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from utils.ema import EMA, decay_at
from utils.errors import UserError
from utils.optim import clip_grad_norm, make_lr_schedule, make_optimizer
from utils.options import LR_SCHEDULES, OptimizerOptions


def test_decay_copies_first_then_rises_to_the_cap():
    assert [decay_at(k) for k in (1, 50, 101)] == [0.0] * 3
    assert decay_at(102) == pytest.approx(1 - 2**-0.75)
    assert decay_at(1101) == pytest.approx(1 - 1001**-0.75)
    assert decay_at(10**9, 0.9999) == 0.9999 and decay_at(150, 0.5) == 0.5
    assert all(decay_at(k) <= decay_at(k + 1) for k in range(1, 3000))


def test_the_average_follows_its_recurrence():
    net = nn.Linear(1, 1, bias=False)
    ema, expected = EMA(net, decay=0.9), 0.0
    for k in range(1, 140):
        with torch.no_grad():
            net.weight.fill_(math.sin(k))
        ema.update()
        d = decay_at(k, 0.9)
        expected = d * expected + (1 - d) * math.sin(k)
        assert ema.tensors["weight"].item() == pytest.approx(expected, abs=1e-5)


def test_foreach_and_single_tensor_updates_are_bitwise_equal():
    net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    averages = [EMA(net, decay=0.9, update_every=2, foreach=foreach) for foreach in (True, False)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(130):
        with torch.no_grad():
            for p in (*net.parameters(), net[1].running_mean, net[1].running_var):  # buffers, too
                p.add_(torch.randn(p.shape, generator=generator))
        for ema in averages:
            ema.update()
    assert {"1.running_mean", "1.running_var"} <= averages[0].tensors.keys()
    for name, x in averages[0].tensors.items():
        assert torch.equal(x, averages[1].tensors[name])
        assert not torch.equal(x, net.state_dict()[name]), name


def test_updating_every_other_step_counts_all_steps():
    net, seen = nn.Linear(1, 1, bias=False), []
    ema = EMA(net, update_every=3)
    for k in range(1, 8):
        with torch.no_grad():
            net.weight.fill_(float(k))
        ema.update()
        seen.append(ema.tensors["weight"].item())
    assert seen == [1, 1, 1, 4, 4, 4, 7] and ema.updates == 7


def test_applied_swaps_in_and_back_even_after_an_error():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMA(net)
    assert "1.running_mean" in ema.tensors and "1.num_batches_tracked" not in ema.tensors
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    own, address = net[0].weight.clone(), net[0].weight.data_ptr()
    with pytest.raises(RuntimeError, match="inside"), ema.applied(net):
        assert torch.equal(net[0].weight, ema.tensors["0.weight"]) and not torch.equal(net[0].weight, own)
        with pytest.raises(AssertionError):
            ema.update()
        raise RuntimeError("inside")
    assert torch.equal(net[0].weight, own) and net[0].weight.data_ptr() == address
    ema.update()


def test_applied_weights_are_used_within_autocast_too():
    """Autocast caches its casts of weights, also when the weights change."""
    net, x = nn.Linear(4, 4), torch.randn(3, 4)
    ema = EMA(net)
    with torch.no_grad():
        net.weight.add_(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        plain = net(x)
        with ema.applied():
            averaged = net(x)
        again = net(x)
    with torch.autocast("cpu", torch.bfloat16), ema.applied():
        alone = net(x)
    assert torch.equal(averaged, alone) and not torch.equal(averaged, plain) and torch.equal(again, plain)


def test_frozen_parameters_are_not_averaged_and_wrong_states_are_refused():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    ema = EMA(net)
    assert set(ema.state_dict()) == {"1.weight", "1.bias"}
    with pytest.raises(ValueError, match="1.bias"):
        ema.load_state_dict({"1.weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="shape"):
        ema.load_state_dict({"1.weight": torch.zeros(3, 2), "1.bias": torch.zeros(2)})


def test_the_decay_split_takes_each_trained_parameter_once():
    net = nn.ModuleDict(
        {"a": nn.Linear(2, 3), "norm": nn.LayerNorm(3), "emb": nn.Embedding(4, 2), "b": nn.Linear(2, 4)}
    )
    net["b"].weight = net["emb"].weight
    net["norm"].weight.requires_grad_(False)
    decayed, plain = make_optimizer(net, OptimizerOptions(adam_weight_decay=0.1)).param_groups
    assert decayed["param_names"] == ["a.weight", "emb.weight"] and decayed["weight_decay"] == 0.1
    assert plain["param_names"] == ["a.bias", "norm.bias", "b.bias"] and plain["weight_decay"] == 0.0
    assert decayed["eps"] == 1e-8 and decayed["betas"] == (0.9, 0.999)
    with pytest.raises(UserError, match="frozen"):
        make_optimizer(nn.Linear(1, 1).requires_grad_(False), OptimizerOptions())
    make_optimizer(nn.Linear(1, 1, device="meta"), OptimizerOptions())


@pytest.mark.parametrize("one_by_one", [False, True])
def test_lion_updates_as_published(one_by_one):
    p = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    options = OptimizerOptions(
        optimizer="lion", learning_rate=0.1, adam_weight_decay=0.01, adam_beta1=0.9, adam_beta2=0.99,
        no_fused_optimizer=one_by_one,
    )  # fmt: skip
    optimizer = make_optimizer([("p", p)], options)
    x, m = p.detach().clone(), torch.zeros(1, 2)
    for g in (torch.tensor([[0.3, -0.2]]), torch.tensor([[-4.0, 0.1]])):
        p.grad = g.clone()
        optimizer.step()
        x = x * (1 - 0.1 * 0.01) - 0.1 * torch.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
        torch.testing.assert_close(p.detach(), x)
    with pytest.raises(UserError, match="^--optimizer lion needs --learning_rate above 0, not 0"):
        make_optimizer([("p", p)], replace(options, learning_rate=0.0))


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_schedule_runs_and_warms_up(name):
    options = OptimizerOptions(lr_schedule=name, learning_rate=1e-3, lr_warmup_steps=10)
    optimizer = make_optimizer(nn.Linear(1, 1), options)
    schedule = make_lr_schedule(optimizer, options, 100)
    rates = []
    for _ in range(100):
        rates.append(schedule.lr)
        optimizer.step()
        schedule.step(torch.tensor(1.0))
    highest = 1e-2 if name == "greedy" else 1e-3  # greedy may raise it
    assert all(0 <= r <= highest * (1 + 1e-6) for r in rates) and max(rates) > 0
    if name not in ("constant", "reduce_lr_on_plateau", "greedy"):
        assert rates[0] < rates[5] < rates[10] and rates[10] == pytest.approx(1e-3, rel=0.05)
    if name in ("reduce_lr_on_plateau", "greedy"):
        assert rates[-1] < rates[0], "a constant loss lowers the rate"


def test_the_cosine_schedule_is_the_cosine():
    options = OptimizerOptions(lr_schedule="cosine", learning_rate=1.0, lr_warmup_steps=0)
    optimizer = make_optimizer(nn.Linear(1, 1), options)
    schedule = make_lr_schedule(optimizer, options, 10)
    for step in range(10):
        assert schedule.lr == pytest.approx((1 + math.cos(math.pi * step / 10)) / 2)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["greedy", "reduce_lr_on_plateau"])
def test_losses_a_schedule_has_collected_are_restored_on_every_rank(name):
    """A checkpoint may be saved between two updates of the schedule; each rank then has a partial sum of its losses."""
    options = OptimizerOptions(lr_schedule=name)

    def schedule():
        return make_lr_schedule(make_optimizer(nn.Linear(1, 1), options), options, 2000)

    ranks = [schedule() for _ in range(2)]
    for _ in range(7):
        for rank, loss in enumerate((0.5, 0.25)):
            ranks[rank].step(torch.tensor(loss))
    seen = ranks[0].seen(lambda mine: torch.stack([mine, ranks[1]._losses]))
    assert seen == [3.5, 1.75] and ranks[0].interval == 10
    metadata = json.loads(json.dumps(ranks[0].metadata(seen)))
    for world_size, parts in ((2, [3.5, 1.75]), (1, [5.25]), (3, [5.25, 0.0, 0.0])):
        for rank, part in enumerate(parts):
            again = schedule()
            again.restore(metadata, rank, world_size)
            assert again.seen() == [part] and again._steps == 7
    again.restore(metadata | {"losses": 3.5})  # the form in older checkpoints
    assert again.seen() == [3.5]


def test_clipping_returns_the_norm_before_and_a_limit_of_zero_clips_nothing():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    unused = nn.Parameter(torch.zeros(3))
    for max_norm, after in ((1.0, 1.0), (0.0, 5.0), (10.0, 5.0)):
        a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        assert clip_grad_norm([a, b, unused], max_norm).item() == pytest.approx(5)
        assert torch.cat([a.grad, b.grad]).norm().item() == pytest.approx(after, rel=1e-5)

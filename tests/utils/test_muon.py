"""Muon for hidden matrices, AdamW for the rest: each part equals the optimizer of torch alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from utils.distributed import has_bf16
from utils.muon import UPDATE_RMS, Muon, hidden_matrices, newton_schulz
from utils.optim import make_optimizer
from utils.options import OptimizerOptions


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(5, 6)
        self.input_proj = nn.Linear(3, 6)
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6, bias=False)
        self.norm = nn.LayerNorm(6)
        self.output_proj = nn.Linear(6, 3)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.positions.weight  # tied

    def forward(self, x):
        x = self.input_proj(x) + self.positions.weight
        return self.output_proj(self.norm(x + self.down(self.up(x).relu())))


def test_muon_updates_matrices_except_input_and_output_layers():
    net = Network()
    assert hidden_matrices(net) == {id(net.up.weight), id(net.down.weight)}
    optimizer = make_optimizer(net, OptimizerOptions(optimizer="muon"))
    muon = [group for group in optimizer.param_groups if group["muon"]]
    assert [group["param_names"] for group in muon] == [["up.weight", "down.weight"]]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


DTYPES = (torch.float32, torch.bfloat16, None)
SHAPES = ((3, 8, 8), (2, 4, 16), (2, 16, 4))
ROUNDING = 32  # error of the five iterations, in units of eps: at most 17 (float32) and 14 (bfloat16) in 50 seeds


def compute_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype in which newton_schulz(x, dtype) computes; None: bfloat16 if the processor supports it."""
    return dtype or (torch.bfloat16 if has_bf16(torch.device("cpu")) else torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_rotation(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = newton_schulz(x, dtype)
    values = torch.linalg.svdvals(y.double())
    assert values.min() > 0.5 and values.max() < 1.3 and y.dtype == x.dtype
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    cosine = (y * (u @ v)).sum((-1, -2)) / min(shape[1:])
    assert (cosine > 0.7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_does_not_depend_on_the_scale_of_its_input(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tolerance = ROUNDING * torch.finfo(compute_dtype(dtype)).eps
    torch.testing.assert_close(newton_schulz(7 * x, dtype), newton_schulz(x, dtype), atol=tolerance, rtol=0)
    assert torch.equal(newton_schulz(8 * x, dtype), newton_schulz(x, dtype)), "a power of two is exact in every dtype"


def test_the_iteration_runs_in_bfloat16_where_the_processor_has_it(monkeypatch):
    x = torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(newton_schulz(x), newton_schulz(x, compute_dtype(None)))
    assert not torch.equal(newton_schulz(x, torch.bfloat16), newton_schulz(x, torch.float32))
    monkeypatch.setenv("DISABLE_BF16", "1")
    assert not has_bf16() and torch.equal(newton_schulz(x), newton_schulz(x, torch.float32))


def test_matrices_are_updated_as_by_torch_muon():
    torch.manual_seed(0)
    start, grads = torch.randn(6, 4), torch.randn(5, 6, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([{"params": [ours], "muon": True}], lr=0.01, weight_decay=0.1, momentum=0.9)
    other = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        one.step()
        other.step()
    assert (ours - start).abs().max() > 0.005
    # torch's Muon iterates in bfloat16 on every processor: five updates, each with entries up to 4 eps off
    update = 0.01 * UPDATE_RMS * math.sqrt(6)
    tolerance = len(grads) * update * 4 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_other_parameters_are_updated_as_by_adamw():
    nets = [Network(), Network()]
    nets[1].load_state_dict(nets[0].state_dict())
    options = [OptimizerOptions(optimizer=name, learning_rate=1e-2) for name in ("muon", "adamw")]
    optimizers = [make_optimizer(net, option) for net, option in zip(nets, options, strict=True)]
    for step in range(3):
        for net, optimizer in zip(nets, optimizers, strict=True):
            for i, p in enumerate(net.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i))
            optimizer.step()
    for (name, p), q in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q) == (name not in ("up.weight", "down.weight")), name

"""Muon for hidden matrices, AdamW for the rest: each half is what it is alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from utils.muon import Muon, hidden_matrices, orthogonalised
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


def test_hidden_matrices_are_those_between_the_ends():
    net = Network()
    assert hidden_matrices(net) == {id(net.up.weight), id(net.down.weight)}
    optimizer = make_optimizer(net, OptimizerOptions(optimizer="muon"))
    muon = [group for group in optimizer.param_groups if group["muon"]]
    assert [group["param_names"] for group in muon] == [["up.weight", "down.weight"]]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_singular_values_come_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(x).double())
    assert values.min() > 0.5 and values.max() < 1.3
    torch.testing.assert_close(orthogonalised(7 * x), orthogonalised(x), atol=1e-2, rtol=1e-2)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    same = (orthogonalised(x) * (u @ v)).sum((-1, -2)) / min(shape[1:])
    assert (same > 0.7).all(), "the rotation of x is kept"


def test_matrices_move_as_under_torchs_own_muon():
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
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)  # theirs orthogonalises in bfloat16 everywhere


def test_everything_else_moves_as_under_adamw():
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

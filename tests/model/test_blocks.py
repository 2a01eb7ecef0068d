"""Inputs of long skips, and modulation that is initialized to the identity."""

from __future__ import annotations

import copy

import pytest
import torch

from model.blocks import SKIP_PAIRINGS, FeedForward, TransformerBackbone, project_in_float32
from utils.errors import UserError


def trunk(depth, skips, pairing="unet"):
    torch.manual_seed(0)
    return TransformerBackbone(64, depth, time_dim=None, cross=False, dropout=0.0, skips=skips, pairing=pairing).eval()


def carried_states(network, x):
    """The second half of each skip's input, and the output of every block."""
    halves, outputs = [], []
    for skip in network.skips:
        skip.register_forward_hook(lambda _, args, __: halves.append(args[0].chunk(2, dim=-1)))
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    network(x, torch.zeros(len(x), 1))
    return halves, outputs


@pytest.mark.parametrize("depth, skips", [(5, 2), (12, 3), (7, 3), (3, 1), (6, 3)])
def test_unet_pairing_is_last_in_first_out(depth, skips):
    halves, outputs = carried_states(trunk(depth, skips), torch.randn(2, 3, 64))
    assert len(halves) == skips
    for j, (stream, skip_sources) in enumerate(halves):
        assert torch.equal(stream, outputs[depth - skips + j - 1])  # the stream first
        assert torch.equal(skip_sources, outputs[skips - 1 - j])  # block n - 1 first, block 0 last
        bend = depth == 2 * skips and j == 0  # no middle block: the innermost state is the stream
        assert torch.equal(stream, skip_sources) == bend


def test_ld4lg_pairing_has_one_early_source():
    halves, outputs = carried_states(trunk(12, 3, "ld4lg"), torch.randn(2, 3, 64))
    assert torch.equal(halves[0][1], outputs[2]) and not torch.equal(*halves[0])
    assert torch.equal(*halves[1]) and torch.equal(*halves[2])


def test_pairings_for_each_number_of_skips():
    assert SKIP_PAIRINGS["unet"](12, 3) == [2, 1, 0]
    assert SKIP_PAIRINGS["ld4lg"](12, 3) == [2, 9, 10]
    assert SKIP_PAIRINGS["ld4lg"](6, 3) == [2, 3, 4]  # with depth = 2 n each is the stream itself
    assert SKIP_PAIRINGS["unet"](4, 0) == SKIP_PAIRINGS["ld4lg"](4, 0) == []


@pytest.mark.parametrize("pairing, depth, skips", [("unet", 5, 3), ("ld4lg", 3, 3), ("unet", 4, -1)])
def test_too_many_skips_are_an_error(pairing, depth, skips):
    with pytest.raises(UserError, match="--num_dense_connections.*use at most"):
        SKIP_PAIRINGS[pairing](depth, skips)


def test_a_backbone_without_blocks_is_an_error():
    with pytest.raises(UserError, match="--tx_depth is 0"):
        trunk(0, 0)


def test_every_skip_gets_a_gradient_through_its_early_half():
    network = trunk(6, 2)
    network(torch.randn(2, 3, 64), torch.zeros(2, 1)).square().sum().backward()
    for skip in network.skips:
        stream, early = skip.weight.grad.chunk(2, dim=1)
        assert stream.abs().max() > 0 and early.abs().max() > 0 and not torch.equal(stream, early)


def test_scale_shift_is_initialized_to_the_identity():
    branch = FeedForward(64, time_dim=32)
    x = torch.randn(2, 3, 64)
    assert torch.equal(branch(x, torch.randn(2, 32)), branch(x, torch.randn(2, 32)))
    torch.nn.init.normal_(branch.scale_shift.proj.weight)
    assert not torch.equal(branch(x, torch.randn(2, 32)), branch(x, torch.randn(2, 32)))


def test_an_output_layer_in_float32_leaves_other_precisions_alone():
    x = torch.randn(3, 8)
    deep = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    assert torch.equal(project_in_float32(deep, x), deep(x)) and torch.equal(
        project_in_float32(torch.nn.Identity(), x), x
    )
    for dtype in (torch.float64, torch.bfloat16):
        copied = copy.deepcopy(deep).to(dtype)
        assert torch.equal(project_in_float32(copied, x.to(dtype)), copied(x.to(dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, fine = deep(x), project_in_float32(deep, x)
        hidden = deep[1](deep[0](x))
    assert rough.dtype == torch.bfloat16 and torch.equal(fine, deep[2](hidden.float()))

"""Dropout by random bits: its probability, scale and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.dropout import LEVELS, Dropout, dropout
from utils.kernels import set_kernels
from utils.options import KernelOptions

CPU = torch.device("cpu")


@pytest.fixture
def uniform():
    set_kernels(KernelOptions(dropout="uniform"), CPU)
    yield
    set_kernels(KernelOptions(), CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_with_the_probability_and_the_others_scaled(dtype, p):
    torch.manual_seed(0)
    n = 200_003  # not a multiple of four, since four elements share a random number
    out = dropout(torch.ones(n, dtype=dtype), p)
    kept = out != 0
    # five standard deviations of a binomial share
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    scale = LEVELS / (LEVELS - round(p * LEVELS))
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], scale))
    # neighbors are independent: the share of pairs that are both kept
    both = (kept[1:] & kept[:-1]).double().mean().item()
    assert abs(both - (1 - p) ** 2) < 0.01


def test_the_gradient_has_the_mask_and_scale_of_the_output():
    x = torch.randn(3, 5, 7, requires_grad=True)
    out = dropout(x, 0.3)
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    torch.testing.assert_close(gradient * x.detach(), out.detach() * weight)
    assert (out == 0).any() and (out != 0).any()


def test_views_that_are_not_contiguous_are_dropped_alike():
    x = torch.randn(6, 4).t()
    torch.manual_seed(1)
    out = dropout(x, 0.5)
    torch.manual_seed(1)
    torch.testing.assert_close(dropout(x.contiguous(), 0.5), out)


def test_the_seed_of_torch_decides_and_bad_numbers_are_dropped_too():
    x = torch.full((1000,), float("nan"))
    torch.manual_seed(2)
    first = dropout(x, 0.5)
    torch.manual_seed(2)
    assert torch.equal(first.isnan(), dropout(x, 0.5).isnan()) and 300 < first.isnan().sum() < 700
    assert torch.equal(first.isnan(), first != 0)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_of_the_range(p):
    x = torch.randn(50)
    assert torch.equal(dropout(x, p), F.dropout(x, p))


def test_the_layer_drops_while_it_trains_alone():
    layer, x = Dropout(0.5), torch.ones(100)
    assert (layer(x) == 0).any() and torch.equal(layer.eval()(x), x)


def test_the_setting_takes_torchs_own(uniform):
    x = torch.randn(40, 40)
    torch.manual_seed(3)
    out = dropout(x, 0.25)
    torch.manual_seed(3)
    assert torch.equal(out, F.dropout(x, 0.25))

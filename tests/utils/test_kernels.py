"""Which attention a process computes, and that all of them are the same attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.attention import attend, attend_by_products, mask_bias
from utils.kernels import FUSED_SCORES, by_products, set_kernels
from utils.options import KernelOptions

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def defaults_after():
    yield
    set_kernels(KernelOptions(), CPU)


def heads(rows: int, queries: int, keys: int, dtype: torch.dtype, grad: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(rows, n, 2, 64).to(dtype).transpose(1, 2).requires_grad_(grad) for n in (queries, keys, keys)]


@pytest.mark.parametrize("bias", ["none", "boolean", "added"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_products_are_torchs_attention_with_its_gradients(bias, dtype, atol):
    q, k, v = heads(3, 5, 6, dtype, grad=True)
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    given = {
        "none": None,
        "boolean": mask[:, None, None],
        "added": mask_bias(torch.ones(3, 5, dtype=torch.bool), mask, dtype),
    }[bias]
    found = []
    for attention in (attend_by_products, F.scaled_dot_product_attention):
        out = attention(q, k, v, given)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, atol=atol, rtol=atol)


def test_the_choice_follows_dtype_and_size():
    size = int((FUSED_SCORES / 4) ** 0.5) + 1  # of two texts and heads
    for dtype, products in ((torch.float32, False), (torch.bfloat16, True), (torch.float16, True)):
        q, k, _ = heads(2, size, size, dtype)
        assert by_products(q, k) == products
        q, k, _ = heads(2, 4, 4, dtype)
        assert not by_products(q, k)


def test_dropout_takes_products_in_every_precision():
    q, k, v = heads(1, 4, 4, torch.float32)
    assert by_products(q, k, 0.1) and not by_products(q, k)
    set_kernels(KernelOptions(dropout="uniform"), CPU)
    assert not by_products(q, k, 0.1)
    torch.manual_seed(1)
    out = attend(q, k, v, dropout=0.5)
    torch.manual_seed(1)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    assert torch.equal(out, expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("attention", ["fused", "plain"])
def test_a_setting_is_obeyed(attention):
    set_kernels(KernelOptions(attention=attention), CPU)
    q, k, _ = heads(8, 40, 40, torch.bfloat16)
    assert not by_products(q, k) and torch.backends.cuda.flash_sdp_enabled() == (attention == "fused")

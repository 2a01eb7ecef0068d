"""Attention of language models by matrix products is that of transformers, whatever mask, bias or order it has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from latent_models import attention as ours

ROWS, HEADS, LENGTH, KEYS, WIDTH = 3, 4, 32, 40, 16
MASK = torch.arange(KEYS) < torch.tensor([KEYS, 17, 5])[:, None, None, None]
CASES = {  # mask, whether there is a bias by distance, whether a query sees only earlier keys
    "mask": (MASK, False, False),
    "bias": (None, True, False),
    "bias and mask": (MASK, True, False),
    "bias and added mask": (torch.where(MASK, 0.0, -1e4), True, False),
    "causal": (None, False, True),
    "causal and bias": (None, True, True),
}


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(ROWS, HEADS, LENGTH, WIDTH), *[(ROWS, HEADS, KEYS, WIDTH)] * 2, (1, HEADS, LENGTH, KEYS)]
    return [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


def attend(attention, case: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output (B, L, H, head), and the gradients of queries, keys, values and bias."""
    mask, has_bias, causal = CASES[case]
    mask = mask.to(dtype) if mask is not None and mask.dtype != torch.bool else mask
    *qkv, bias = inputs(dtype)
    given = {"position_bias": bias} if has_bias else {}
    out, _ = attention(SimpleNamespace(is_causal=causal), *qkv, mask, scaling=0.3, **given)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), [*qkv, *given.values()])]


@pytest.mark.parametrize("case", CASES)
def test_products_are_the_attention_of_transformers_with_its_gradients(case, monkeypatch):
    monkeypatch.setattr(ours, "by_products", lambda *args: True)  # else of half precision alone
    expected = attend(sdpa_attention_forward, case, torch.float64)
    monkeypatch.setattr(ours, "sdpa_attention_forward", None)
    found = attend(ours.attention, case, torch.float64)
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_takes_products_and_is_as_near_to_float32(case, monkeypatch):
    exact = attend(sdpa_attention_forward, case, torch.float32)
    fused = attend(sdpa_attention_forward, case, torch.bfloat16)
    monkeypatch.setattr(ours, "sdpa_attention_forward", None)
    for own, theirs, wanted in zip(attend(ours.attention, case, torch.bfloat16), fused, exact, strict=True):
        error, usual = (own - wanted).abs().mean(), (theirs - wanted).abs().mean()
        assert own.dtype == torch.bfloat16 and error < 2 * usual + 1e-3


def test_a_query_that_sees_no_key_has_no_nan():
    q, k, v, bias = inputs(torch.bfloat16)
    mask = torch.zeros(ROWS, 1, LENGTH, KEYS, dtype=torch.bool)
    out, _ = ours.attention(SimpleNamespace(is_causal=False), q, k, v, mask, scaling=1.0, position_bias=bias)
    assert out.isfinite().all()

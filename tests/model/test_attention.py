"""Masks, relative positions and head sizes."""

from __future__ import annotations

import pytest
import torch

from model.attention import Attention, RelativePositions, attend, check_heads, mask_bias, position_buckets
from utils.errors import UserError


def test_check_heads_names_the_flag_and_the_nearest_widths():
    assert check_heads(192, 64, "--tx_dim") == 3
    with pytest.raises(UserError, match="--tx_dim is 100.* 64 or 128"):
        check_heads(100, 64, "--tx_dim")
    with pytest.raises(UserError, match="use 64$"):
        check_heads(48, 64, "--tx_dim")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padded_query_attends_uniformly_to_all_keys(dtype):
    torch.manual_seed(0)
    q, k, v = (30 * torch.randn(2, 1, 5, 64, dtype=dtype) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    out = attend(q, k, v, mask_bias(mask, mask, dtype))
    assert out.isfinite().all()
    near = {"atol": 1.0 if dtype == torch.bfloat16 else 1e-3, "rtol": 0.0}  # beside values of about 30
    torch.testing.assert_close(out[0, 3:], v[0, 0].mean(0).expand(2, -1), **near)
    torch.testing.assert_close(out[:1, :3], attend(q[:1, :, :3], k[:1, :, :3], v[:1, :, :3]), **near)


def test_mask_bias_stays_finite_in_float16():
    bias = mask_bias(torch.tensor([[True, False]]), torch.tensor([[True, False]]), torch.float16)
    assert (bias - 30000).isfinite().all()


def test_attention_without_memory_is_attention_to_its_own_normed_stream():
    layer = Attention(64).eval()
    x = torch.randn(2, 3, 64)
    torch.testing.assert_close(layer(x), layer(x, memory=layer.norm(x)))


def test_position_buckets_as_published():
    # independent derivation: T5's rule by hand. 32 buckets: 16 a side, 8 exact, 8 growing logarithmically up to 128
    def bucket(offset):
        side, n = (16, offset) if offset > 0 else (0, -offset)
        if n < 8:
            return side + n
        return side + min(15, next(7 + i for i in range(1, 99) if n < 8 * 16 ** (i / 8) - 1e-9))

    found = position_buckets(160, 32, 128)
    for query, key in [
        (0, 0),
        (0, 1),
        (1, 0),
        (7, 0),
        (0, 7),
        (0, 8),
        (20, 0),
        (0, 50),
        (130, 0),
        (0, 159),
        (100, 9),
        (40, 120),
    ]:
        assert found[query, key] == bucket(key - query), (query, key)
    assert found.min() == 0 and found.max() == 31


def test_relative_positions_depend_on_the_offset_alone():
    bias = RelativePositions(heads=2)(9)
    assert bias.shape == (1, 2, 9, 9)
    torch.testing.assert_close(bias[..., :-1, :-1], bias[..., 1:, 1:])
    assert not torch.equal(bias[0, 0, 0, 1], bias[0, 0, 1, 0])

"""The cache of generation holds what transformers' would, without copying it."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from latent_models.generation.cache import FIRST_CAPACITY, GrowingLayer, SharedLayer


def states(rows: int, length: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, 2, length, 4, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_growing_layer_equals_that_of_transformers(dtype):
    own, theirs = GrowingLayer(), DynamicLayer()
    assert own.get_seq_length() == 0 and own.get_mask_sizes(1) == theirs.get_mask_sizes(1)
    length = 0
    for step, new in enumerate((3, 1, FIRST_CAPACITY, 1, 1)):
        found, expected = own.update(*states(6, new, step, dtype)), theirs.update(*states(6, new, step, dtype))
        length += new
        assert own.get_seq_length() == theirs.get_seq_length() == length
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        rows = torch.tensor([1, 1, 0, 5, 4, 2])
        (own.reorder_cache if step % 2 else own.batch_select_indices)(rows)
        theirs.reorder_cache(rows)
        assert torch.equal(own.keys, theirs.keys)
    own.crop(-4)
    theirs.crop(-4)
    found, expected = own.update(*states(6, 2, 9, dtype)), theirs.update(*states(6, 2, 9, dtype))
    assert torch.equal(found[1], expected[1])
    own.batch_repeat_interleave(2)
    assert own.keys.shape[0] == 12 and torch.equal(own.keys[2], own.keys[3])
    own.reset()
    assert own.get_seq_length() == 0


def test_tokens_are_written_into_the_buffer_that_is_there():
    layer = GrowingLayer()
    layer.update(*states(2, 1, 0))
    where = layer.keys.data_ptr()
    for step in range(1, FIRST_CAPACITY):
        layer.update(*states(2, 1, step))
    assert layer.keys.data_ptr() == where
    layer.update(*states(2, 1, 99))
    assert layer.keys.data_ptr() != where and layer.keys.shape[-2] == FIRST_CAPACITY + 1


def test_a_shared_layer_keeps_one_row_for_a_text_and_ignores_the_order_of_its_beams():
    layer = SharedLayer(beams=3)
    keys, values = (x.repeat_interleave(3, 0) for x in states(2, 5, 0))
    found = layer.update(keys, values)
    assert torch.equal(found[0], keys[::3]) and torch.equal(found[1], values[::3])
    layer.reorder_cache(torch.tensor([2, 0, 1, 4, 4, 3]))
    assert torch.equal(layer.keys, keys[::3])

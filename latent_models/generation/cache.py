"""A key-value cache for generation that neither grows by copying nor copies what all beams of a text share.

transformers' dynamic cache copies all keys and values for each new token, and again, those of the encoder states
included, when beams are reordered: a third of the time of a beam search on a CPU.
Shapes: B texts, K beams of each (1 without a search), H heads, S keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

FIRST_CAPACITY = 8  # tokens


class GrowingLayer(DynamicLayer):
    """Keys and values of the tokens so far, (B * K, H, S, head), in buffers that double when they are full."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.buffers = [self._empty(x, FIRST_CAPACITY) for x in (key_states, value_states)]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        for i, (new, buffer) in enumerate(zip((key_states, value_states), self.buffers, strict=True)):
            if end > buffer.shape[-2]:
                self.buffers[i] = self._empty(new, max(end, 2 * buffer.shape[-2]))
                self.buffers[i][..., :begin, :] = buffer[..., :begin, :]
            self.buffers[i][..., begin:end, :] = new
        self._show(end)
        return self.keys, self.values

    def reset(self) -> None:
        self.is_initialized = False  # get_seq_length is then 0, and the next update begins anew
        self.buffers = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(len(self.buffers[0]), device=self.buffers[0].device)
        self._select(rows.repeat_interleave(repeats))

    def _select(self, rows: Tensor) -> None:
        length = self.get_seq_length()
        if length:  # whole buffers: contiguous memory is copied several times as fast as parts of each row
            rows = rows.contiguous()  # beam search gives a column of a table
            self.buffers = [buffer.index_select(0, rows) for buffer in self.buffers]
            self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[..., :length, :] for buffer in self.buffers)

    @staticmethod
    def _empty(like: Tensor, capacity: int) -> Tensor:
        rows, heads, _, width = like.shape
        return like.new_empty(rows, heads, capacity, width)


class SharedLayer(DynamicLayer):
    """Keys and values of the encoder states, (B, H, S, head): once for all beams of a text.

    The attention has B * K rows of queries (latent_models/attention).
    """

    def __init__(self, beams: int) -> None:
        super().__init__()
        self.beams = beams

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        # contiguous, since every token reads them
        self.keys, self.values = (x[:: self.beams].contiguous() for x in (key_states, value_states))
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Nothing changes: a beam goes on from a beam of the same text."""


def make_cache(model: Any, beams: int) -> EncoderDecoderCache:
    """An empty cache for the decoder of a model of transformers. beams: of each text, 1 without a search."""
    count = len(DynamicCache(config=model.config.get_text_config(decoder=True)).layers)
    if hasattr(model.config, "relative_attention_num_buckets"):  # T5 adds a bias by row of the keys
        beams = 1
    own, cross = DynamicCache(), DynamicCache()
    own.layers = [GrowingLayer() for _ in range(count)]
    cross.layers = [SharedLayer(beams) for _ in range(count)]
    return EncoderDecoderCache(own, cross)

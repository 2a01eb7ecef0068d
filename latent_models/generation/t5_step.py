"""One decoding step of T5 and mT5 (Raffel et al. 2020, arXiv:1910.10683; Xue et al. 2021, arXiv:2010.11934).

The weights are those of a model of transformers, and so is the arithmetic. See decoder_steps.py.
Shapes: N texts, H heads, T tokens so far, S positions of the encoder, D width. Beams are rows of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_models.generation.cache import GrowingLayer, SharedLayer
from latent_models.generation.projection import Projection
from model.attention import attend_by_products
from utils.kernels import by_products


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention without a scale: (N, H, 1, head) x (N, H, T, head) -> (N, 1, H * head). bias: to (N, H, 1, T)."""
    if by_products(q, k):
        out = attend_by_products(q, k, v, bias, scale=1.0)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return out.transpose(1, 2).flatten(2)


class T5Layer:
    """One block for one token of each row."""

    def __init__(self, block: Any) -> None:
        own, cross, self.feed_forward = block.layer  # modules of transformers: attention, attention, feed-forward
        self.heads = own.SelfAttention.n_heads
        self.own_norm, self.cross_norm = own.layer_norm, cross.layer_norm
        self.own_projection = Projection.of(own.SelfAttention.q, own.SelfAttention.k, own.SelfAttention.v)
        self.own_out = Projection.of(own.SelfAttention.o)
        self.cross_query = Projection.of(cross.EncDecAttention.q)
        self.cross_out = Projection.of(cross.EncDecAttention.o)

    def __call__(
        self, x: Tensor, own: GrowingLayer, cross: SharedLayer, distance: Tensor, mask: Tensor | None
    ) -> Tensor:
        """x: (N, 1, D). own, cross: keys and values of this layer; own gets those of the token.

        distance: (1, H, 1, T), added to the scores. mask: (N, 1, 1, S), bool.
        """
        rows = len(x)
        q, k, v = self.own_projection(self.own_norm(x)).view(rows, 3, self.heads, 1, -1).unbind(1)  # (N, H, 1, head)
        keys, values = own.update(k, v)
        x = x + self.own_out(_attend(q, keys, values, distance))
        q = self.cross_query(self.cross_norm(x)).view(rows, self.heads, 1, -1)
        x = x + self.cross_out(_attend(q, cross.keys, cross.values, mask))
        return self.feed_forward(x)


class T5Step:
    """The decoder of a model for one token of each row."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self.embed_tokens, self.last_norm = decoder.embed_tokens, decoder.final_layer_norm
        self.layers = [T5Layer(block) for block in decoder.block]
        first = decoder.block[0].layer[0].SelfAttention
        self.buckets, self.most_distant = first.relative_attention_num_buckets, first.relative_attention_max_distance
        self.bucket_of, self.bias_of_bucket = first._relative_position_bucket, first.relative_attention_bias
        self.head = Projection.of(model.lm_head)
        self.scale = model.model_dim**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0

    def __call__(self, ids: Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """ids: (N, 1), the newest token. cache: of all layers. mask: (N, 1, 1, S), bool. Returns logits (N, 1, V)."""
        own, cross = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        distance = self.distance_bias(own[0].get_seq_length(), ids.device)
        x = self.embed_tokens(ids)  # (N, 1, D)
        for layer, own_layer, cross_layer in zip(self.layers, own, cross, strict=True):
            x = layer(x, own_layer, cross_layer, distance, mask)
        return self.head(self.last_norm(x) * self.scale)

    def distance_bias(self, position: int, device: torch.device) -> Tensor:
        """The bias of the scores of the token at this position, by its distance to each token so far: (1, H, 1, T)."""
        distance = torch.arange(-position, 1, device=device)
        bucket = self.bucket_of(distance, False, self.buckets, self.most_distant)
        return self.bias_of_bucket(bucket).t()[None, :, None]

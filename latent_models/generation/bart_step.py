"""One decoding step of BART and mBART (Lewis et al. 2020, arXiv:1910.13461; Liu et al. 2020, arXiv:2001.08210).

The weights are those of a model of transformers, and so is the arithmetic. See decoder_steps.py.
Shapes: B texts, K beams of each (1 without a search), N = B * K rows, H heads, S positions of the encoder, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from latent_models.generation.cache import GrowingLayer, SharedLayer
from latent_models.generation.projection import Projection
from model.attention import attend

PRE_NORM = {"bart": False, "mbart": True}  # model_type: whether norms come before their branch


class BartLayer:
    """One layer for one token of each row."""

    def __init__(self, layer: Any, pre_norm: bool) -> None:
        own, cross = layer.self_attn, layer.encoder_attn
        self.heads, self.pre_norm = own.num_heads, pre_norm
        self.own_projection = Projection.of(own.q_proj, own.k_proj, own.v_proj)
        self.own_out = Projection.of(own.out_proj)
        self.cross_query, self.cross_out = Projection.of(cross.q_proj), Projection.of(cross.out_proj)
        self.up, self.down, self.activation = Projection.of(layer.fc1), Projection.of(layer.fc2), layer.activation_fn
        self.norms = layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm

    def __call__(self, x: Tensor, own: GrowingLayer, cross: SharedLayer, mask: Tensor | None) -> Tensor:
        """x: (N, 1, D). own, cross: keys and values of this layer; own gets those of the token. mask: (B, 1, 1, S)."""
        branches = (
            lambda h: self.own_attention(h, own),
            lambda h: self.cross_attention(h, cross, mask),
            lambda h: self.down(self.activation(self.up(h))),
        )
        for norm, branch in zip(self.norms, branches, strict=True):
            x = x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))
        return x

    def own_attention(self, x: Tensor, cache: GrowingLayer) -> Tensor:
        rows, _, width = x.shape
        q, k, v = self.own_projection(x).view(rows, 3, self.heads, 1, width // self.heads).unbind(1)  # (N, H, 1, head)
        keys, values = cache.update(k, v)
        return self.own_out(attend(q, keys, values))

    def cross_attention(self, x: Tensor, cache: SharedLayer, mask: Tensor | None) -> Tensor:
        rows, _, width = x.shape
        keys, values = cache.keys, cache.values  # (B, H, S, head)
        q = self.cross_query(x).view(len(keys), -1, self.heads, width // self.heads).transpose(1, 2)  # (B, H, K, head)
        return self.cross_out(attend(q, keys, values, mask).view(rows, 1, width))


class BartStep:
    """The decoder of a model for one token of each row."""

    def __init__(self, model: Any) -> None:
        decoder, pre_norm = model.get_decoder(), PRE_NORM[model.config.model_type]
        self.embed_tokens, self.embed_positions = decoder.embed_tokens, decoder.embed_positions
        self.first_norm = decoder.layernorm_embedding
        self.layers = [BartLayer(layer, pre_norm) for layer in decoder.layers]
        self.last_norm = decoder.layer_norm if pre_norm else nn.Identity()
        self.head = Projection(model.lm_head.weight, model.final_logits_bias[0])

    def __call__(self, ids: Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """ids: (N, 1), the newest token. cache: of all layers. mask: (B, 1, 1, S), bool. Returns logits (N, 1, V)."""
        own, cross = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        position = self.embed_positions.weight[own[0].get_seq_length() + self.embed_positions.offset]
        x = self.first_norm(self.embed_tokens(ids) + position)  # (N, 1, D)
        for layer, own_layer, cross_layer in zip(self.layers, own, cross, strict=True):
            x = layer(x, own_layer, cross_layer, mask)
        return self.head(self.last_norm(x))

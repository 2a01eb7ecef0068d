"""Loads weights of the published implementation's Perceiver autoencoder: a table of their names and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from model.reference_weights import Rules, load_renamed, rename_parameter, strip_prefixes

PREFIX = "perceiver_ae."

# (pattern of a reference name, our name), applied one after the other
RULES: Rules = (
    (r"^perceiver_(encoder|decoder)\.", r"\1."),
    (r"^encoder\.latents$", "encoder.queries"),
    (r"\.pos_emb\.emb\.", ".positions."),
    (r"\.final_norm\.", ".norm."),
    (r"\.layers\.(\d+)\.0\.", r".layers.\1.attention."),
    (r"\.layers\.(\d+)\.1\.0\.", r".layers.\1.feed_forward.norm."),
    (r"\.layers\.(\d+)\.1\.1\.", r".layers.\1.feed_forward.up."),
    (r"\.layers\.(\d+)\.1\.4\.", r".layers.\1.feed_forward.down."),
    (r"\.to_out\.(0\.)?", ".out."),
    (r"\.latent_to_kv\.", ".latent_kv."),
    (r"\.to_(q|k|v|kv)\.", r".\1."),
)


def cut_positions(state: Mapping[str, Tensor], max_seq_len: int) -> dict[str, Tensor]:
    """The weights with a table of max_seq_len token positions; that of the reference always has 64 or 192."""
    return {
        key: x[:max_seq_len] if key.endswith("perceiver_encoder.pos_emb.emb.weight") else x for key, x in state.items()
    }


def load_reference(module: PerceiverAutoencoder, state: Mapping[str, Tensor]) -> None:
    """Load the published implementation's autoencoder weights.

    state: the state dict of the Perceiver alone, or of the whole model around it (prefix perceiver_ae.), whose language
    model is ignored.
    """
    names = {key: strip_prefixes(key, ("module.",)) for key in state}
    whole = any(name.startswith(PREFIX) for name in names.values())
    ours = {strip_prefixes(name): state[key] for key, name in names.items() if name.startswith(PREFIX) or not whole}
    load_renamed(module, ours, lambda name: rename_parameter(name, RULES), "autoencoder")

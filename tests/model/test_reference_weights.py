"""Weights of the published implementation are loaded, with any wrappers around them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from model import make_denoiser
from model.options import DenoiserOptions
from model.reference_weights import denoiser_name, load_reference, strip_prefixes
from utils.errors import UserError

OPTIONS = DenoiserOptions(tx_dim=64, tx_depth=2, self_condition=True, scale_shift=True)


def first_release_names(depth=2, latent=8, positions=16):
    """Names and shapes of the first release: width 64, 3 classes."""
    d = 64
    shapes = {
        "time_mlp.1": (4 * d, d),
        "time_mlp.3": (4 * d, 4 * d),
        "time_pos_embed_mlp.1": (d, 4 * d),
        "context_proj": (d, latent),
        "input_proj": (d, latent),
        "output_proj": (latent, d),
    }
    names = {f"{k}.weight": v for k, v in shapes.items()} | {f"{k}.bias": v[:1] for k, v in shapes.items()}
    names |= {
        "pos_emb.emb.weight": (positions, d),
        "class_embedding.weight": (4, d),
        "null_embedding.weight": (1, d),
        "norm.weight": (d,),
        "norm.bias": (d,),
        "encoder.rel_pos.relative_attention_bias.weight": (32, 1),
    }
    for layer in range(3 * depth):
        at = f"encoder.layers.{layer}."
        names |= {at + "0.0.weight": (d,), at + "0.0.bias": (d,)}
        if layer % 3 < 2:
            names |= {f"{at}1.to_{x}.weight": (d, d) for x in ("q", "k", "v", "out")}
            continue
        names |= {at + "0.1.weight": (d,), at + "0.1.bias": (d,)}
        names |= {at + "1.ff.0.proj.weight": (8 * d, d), at + "1.ff.0.proj.bias": (8 * d,)}
        names |= {at + "1.ff.3.weight": (d, 4 * d), at + "1.ff.3.bias": (d,)}
        scale_shift = at + "2.scale_shift.time_mlp.1."
        names |= {scale_shift + "weight": (2 * d, 4 * d), scale_shift + "bias": (2 * d,)}
    return names


def test_first_release_weights_load_with_buffers_and_prefixes():
    state = {f"module.diffusion_model.{k}": torch.randn(v) for k, v in first_release_names().items()}
    buffers = ("betas", "alphas_cumprod", "sqrt_recip_alphas_cumprod", "posterior_mean_coef1", "latent_mean")
    network = make_denoiser(8, 16, replace(OPTIONS, denoiser_variant="states", class_conditional=True), num_classes=3)
    load_reference(network, state | {f"module.{k}": torch.zeros(4) for k in buffers})
    cross = state["module.diffusion_model.encoder.layers.4.1.to_q.weight"]
    assert torch.equal(network.previous_tokens.null, state["module.diffusion_model.null_embedding.weight"])
    assert torch.equal(network.trunk.blocks[1].cross.q.weight, cross)


def test_sub_layers_are_counted_by_the_branches_of_a_block():
    names = ("encoder.layers.5.1.ff.3.bias", "encoder.layers.7.0.0.weight")
    with_cross, without = ("attention", "cross", "feed_forward"), ("attention", "feed_forward")
    assert denoiser_name(names[0], with_cross, ()) == "trunk.blocks.1.feed_forward.down.bias"
    assert denoiser_name(names[0], without, ()) == "trunk.blocks.2.feed_forward.down.bias"
    assert denoiser_name(names[1], with_cross, ()) == "trunk.blocks.2.cross.norm.weight"


def test_strip_prefixes_in_any_order():
    assert strip_prefixes("module.diffusion_model.module.norm.weight") == "norm.weight"
    assert strip_prefixes("norm.weight") == "norm.weight"


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda s: s.pop("diffusion_model.norm.bias"), "lacks norm.bias"),
        (lambda s: s.update({"diffusion_model.other": torch.zeros(1)}), "holds other"),
        (lambda s: s.update({"diffusion_model.norm.bias": torch.zeros(3)}), "(3,) instead of (64,)"),
    ],
)
def test_weights_of_another_network_are_a_one_line_error_and_change_nothing(change, found):
    state = {f"diffusion_model.{k}": torch.randn(v) for k, v in first_release_names().items()}
    network = make_denoiser(8, 16, replace(OPTIONS, denoiser_variant="states", class_conditional=True), num_classes=3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    change(state)
    with pytest.raises(UserError, match=re.escape(found)) as error:
        load_reference(network, state)
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())

"""The Perceiver autoencoder: sizes, padding, lengths, normalization, and its published weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder, QKNorm
from latent_models.autoencoders.reference_weights import RULES, load_reference
from model.reference_weights import rename_parameter
from utils.errors import UserError

OPTIONS = PerceiverOptions(num_encoder_latents=4, dim_ae=64, num_layers=2)


def autoencoder(dim_lm=128, max_seq_len=100, **changes):
    torch.manual_seed(0)
    return PerceiverAutoencoder(dim_lm, replace(OPTIONS, **changes), max_seq_len).eval()


@pytest.mark.parametrize("dim_ae, depth, count", [(64, 2, 17_121_408), (64, 3, 25_618_432), (256, 2, 19_441_920)])
def test_parameter_counts_of_the_published_autoencoders(dim_ae, depth, count):
    options = PerceiverOptions(num_encoder_latents=32, dim_ae=dim_ae, num_layers=depth)
    with torch.device("meta"):
        module = PerceiverAutoencoder(768, options, 64)
    assert sum(p.numel() for p in module.parameters()) == count


@pytest.mark.parametrize("dim_lm, dim_ae", [(128, 64), (64, 64), (64, 128), (128, 24)])
@pytest.mark.parametrize("length", [1, 7, 100])
def test_texts_of_any_length_have_the_same_number_of_latents(dim_lm, dim_ae, length):
    module = autoencoder(dim_lm, dim_ae=dim_ae)
    latents, memory = module(torch.randn(3, length, dim_lm))
    assert latents.shape == (3, 4, dim_ae) and memory.shape == (3, 4, dim_lm)


@pytest.mark.parametrize("dim_lm", [128, 64])
def test_latents_do_not_depend_on_padding(dim_lm):
    module = autoencoder(dim_lm)
    states = torch.randn(3, 9, dim_lm)
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    latents = module.encode(states, mask)
    junk = states + torch.where(mask[..., None], 0.0, 1e3)
    torch.testing.assert_close(module.encode(junk, mask), latents)
    torch.testing.assert_close(module.encode(states[1:2, :4]), latents[1:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.encode(states, torch.ones_like(mask)), module.encode(states))


def test_a_text_without_tokens_still_has_finite_latents():
    module = autoencoder()
    assert module.encode(torch.randn(1, 5, 128), torch.zeros(1, 5, dtype=torch.bool)).isfinite().all()


def test_l2_normalized_latents_have_norm_sqrt_d():
    module = autoencoder(l2_normalize_latents=True)
    latents = module.encode(torch.randn(2, 7, 128))
    torch.testing.assert_close(latents.norm(dim=-1), torch.full((2, 4), 8.0))
    torch.testing.assert_close(module.project(latents), latents)
    torch.testing.assert_close(module.project(3 * latents), latents)
    plain = torch.randn(2, 4, 64)
    assert autoencoder().project(plain) is plain


def test_head_norm_is_the_published_formula():
    x = torch.randn(2, 3, 5, 64)
    norm = QKNorm(64)
    torch.nn.init.normal_(norm.gamma)
    expected = x / (x.norm(dim=-1, keepdim=True) * 64**-0.5).clamp(min=1e-8) * norm.gamma
    torch.testing.assert_close(norm(x), expected)
    assert norm(torch.zeros(1, 1, 1, 64)).abs().max() == 0


def test_gradients_reach_every_parameter():
    module = autoencoder(l2_normalize_latents=True).train()
    _, memory = module(torch.randn(2, 100, 128), torch.ones(2, 100, dtype=torch.bool))
    (memory * torch.randn_like(memory)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_bfloat16_autocast_is_close():
    module = autoencoder(l2_normalize_latents=True)
    states, mask = torch.randn(2, 7, 128), torch.arange(7) < torch.tensor([7, 3])[:, None]
    exact = module(states, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = module(states, mask)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).abs().mean() < 0.05 * a.abs().mean()


@pytest.mark.parametrize(
    "dim_lm, changes, line",
    [
        (100, {}, r"width of the language model.* is 100.* 64 or 128"),
        (64, {"dim_ae": 100}, r"--dim_ae.* is 100.* 64 or 128"),
        (128, {"num_decoder_latents": 7}, r"--num_decoder_latents 7 .*leave the flag out"),
        (128, {"num_encoder_latents": 0}, r"--num_encoder_latents is 0"),
        (128, {"num_layers": 0}, r"--num_layers is 0"),
    ],
)
def test_invalid_sizes_raise_an_error_of_one_line(dim_lm, changes, line):
    with pytest.raises(UserError, match=line) as error:
        autoencoder(dim_lm, **changes)
    assert "\n" not in str(error.value)


def test_another_head_size_and_equal_decoder_latents_are_accepted():
    module = PerceiverAutoencoder(48, replace(OPTIONS, dim_ae=32, num_decoder_latents=4), 10, head_dim=16)
    assert module(torch.randn(1, 10, 48))[1].shape == (1, 4, 48)


def test_texts_longer_than_the_position_table_are_refused():
    with pytest.raises(UserError, match="101 tokens.*100.*--max_seq_len"):
        autoencoder().encode(torch.randn(1, 101, 128))


def reference_names(module):
    """The published names of a module's parameters, each checked against the table of rules."""
    inner = {
        "attention.norm": "0.norm",
        "attention.norm_latents": "0.norm_latents",
        "attention.query_norm": "0.query_norm",
        "attention.key_norm": "0.key_norm",
        "attention.q": "0.to_q",
        "attention.k": "0.to_k",
        "attention.v": "0.to_v",
        "attention.kv": "0.to_kv",
        "attention.latent_kv": "0.latent_to_kv",
        "feed_forward.norm": "1.0",
        "feed_forward.up": "1.1",
        "feed_forward.down": "1.4",
    }
    outer = {
        "encoder.queries": "perceiver_encoder.latents",
        "encoder.norm": "perceiver_encoder.final_norm",
        "decoder.norm": "perceiver_decoder.final_norm",
        "encoder.positions": "perceiver_encoder.pos_emb.emb",
        "decoder.positions": "perceiver_decoder.pos_emb.emb",
        "decoder.input_proj": "perceiver_decoder.input_proj",
    }
    names = {}
    for name in module.state_dict():
        half, _, rest = name.partition(".")
        if rest.startswith("layers."):
            _, i, branch, part, leaf = rest.split(".")
            key = f"{branch}.{part}"
            inside = {"attention.out": "0.to_out.0" if half == "encoder" else "0.to_out"} | inner
            names[name] = f"perceiver_{half}.layers.{i}.{inside[key]}.{leaf}"
        else:
            stem, _, leaf = name.rpartition(".")
            names[name] = outer[name] if name in outer else f"{outer[stem]}.{leaf}"
    return names


@pytest.mark.parametrize("dim_lm", [128, 64])
@pytest.mark.parametrize("prefix", ["", "perceiver_ae.", "module.perceiver_ae."])
def test_published_weights_load_from_every_known_layout(dim_lm, prefix):
    names = reference_names(autoencoder(dim_lm))
    assert all(rename_parameter(reference, RULES) == ours for ours, reference in names.items())
    source, module = autoencoder(dim_lm), autoencoder(dim_lm)
    for p in source.parameters():
        torch.nn.init.normal_(p)
    state = {prefix + names[k]: v for k, v in source.state_dict().items()}
    if prefix:
        state[prefix.removesuffix("perceiver_ae.") + "model.encoder.layers.0.fc1.weight"] = torch.zeros(2, 2)
    load_reference(module, state)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in module.state_dict().items())


def test_weights_of_another_autoencoder_raise_an_error_of_one_line():
    wide = autoencoder(dim_ae=32)
    state = {reference: wide.state_dict()[ours] for ours, reference in reference_names(wide).items()}
    with pytest.raises(UserError, match="another autoencoder.*instead of") as error:
        load_reference(autoencoder(), state)
    assert "\n" not in str(error.value)

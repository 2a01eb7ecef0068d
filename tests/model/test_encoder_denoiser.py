"""The denoiser around a Hugging Face encoder: shapes, masks, conditions, and the source of its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, GPT2Config

from model import make_denoiser
from model.encoder_denoiser import HFEncoderDenoiser, encoder_config, projection_mlp
from model.options import DenoiserOptions, EncoderDenoiserOptions
from utils.errors import UserError
from utils.records import Condition

B, L, D = 3, 10, 8
SMALL = dict(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=24,
    vocab_size=40,
)  # fmt: skip
PLAIN = DenoiserOptions(denoiser_variant="encoder")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A tiny real BERT, saved in the usual format."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def network(bert):
    def of(options: DenoiserOptions = PLAIN, latent_dim: int = D, seed: int = 0, classes: int = 0, **changes):
        torch.manual_seed(seed)
        own = EncoderDenoiserOptions(**{"encoder_config": str(bert), **changes})
        return make_denoiser(latent_dim, 16, options, classes, own_options=own).eval()

    return of


def noisy(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, L, D, generator=g), torch.rand(B, generator=g)


def test_the_signature_is_that_of_the_other_networks(network):
    made = network()
    assert isinstance(made, HFEncoderDenoiser)
    z, time = noisy()
    assert made(z, time).shape == (B, L, D)
    everywhere = made(z, time, torch.ones(B, L, dtype=torch.bool))
    torch.testing.assert_close(made(z, time), everywhere)
    assert not torch.allclose(made(z, time), made(z, 1 - time))  # the output depends on the time
    torch.testing.assert_close(made(z, time[:1]), made(z, time[:1].expand(B)))  # of all at once
    assert not torch.allclose(made(z, time).flip(1), made(z.flip(1), time))  # and the places


@pytest.mark.parametrize("kind, changes", [
    ("bert", {}), ("roberta", dict(pad_token_id=1)), ("electra", dict(embedding_size=16)),
    ("albert", dict(embedding_size=16)), ("distilbert", dict(dim=32, n_layers=1, n_heads=2, hidden_dim=48)),
    ("deberta-v2", dict(relative_attention=True)),
])  # fmt: skip
def test_padding_has_no_effect_in_any_encoder(kind, changes, tmp_path):
    AutoConfig.for_model(kind, **{**SMALL, **changes}).save_pretrained(tmp_path)
    made = make_denoiser(D, 16, PLAIN, own_options=EncoderDenoiserOptions(encoder_config=str(tmp_path))).eval()
    z, time = noisy()
    mask = torch.arange(L) < torch.tensor([10, 4, 7])[:, None]
    found = made(z, time, mask)
    junk = made(torch.where(mask[..., None], z, 1e3), time, mask)
    torch.testing.assert_close(found[mask], junk[mask])
    torch.testing.assert_close(made(z[1:2, :4], time[1:2])[0], found[1, :4], atol=1e-5, rtol=1e-4)


def test_every_parameter_is_trained(network):
    """Word embeddings and pooler of the encoder are removed, so every parameter has a gradient."""
    made = network(replace(PLAIN, self_condition=True, class_conditional=True), classes=2).train()
    z, time = noisy()
    self_cond_mask = torch.tensor([True, False, True])
    made(z, time, None, Condition.of(class_id=torch.tensor([0, 1, 1])), z, self_cond_mask).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []
    assert not any("word" in name or "pooler" in name for name in made.state_dict())


def test_self_conditioning_and_class_have_learned_nulls(network):
    made = network(replace(PLAIN, self_condition=True, class_conditional=True), classes=2)
    z, time = noisy()
    previous, seen = torch.randn(B, L, D), torch.tensor([True, False, True])
    mixed = made(z, time, x0_self_cond=previous, self_cond_mask=seen)
    torch.testing.assert_close(mixed[1], made(z, time)[1])
    torch.testing.assert_close(mixed[0], made(z, time, x0_self_cond=previous)[0])
    assert not torch.allclose(mixed[0], made(z, time)[0])
    condition = Condition.of(class_id=torch.tensor([0, 1, 1]))
    assert not torch.allclose(made(z, time, None, condition), made(z, time))
    torch.testing.assert_close(made(z, time, None, condition.null()), made(z, time))
    with pytest.raises(ValueError, match="built without classes"):
        network()(z, time, None, condition)


def test_projections_exist_where_widths_differ(network):
    assert [type(part).__name__ for part in projection_mlp(8, 32)] == ["Linear", "Tanh", "Linear"]
    same = network(latent_dim=32)
    assert isinstance(same.input_proj, torch.nn.Identity) and isinstance(same.output_proj, torch.nn.Identity)
    z = torch.randn(B, L, 32)
    assert same(z, torch.rand(B)).shape == z.shape


def test_pretrained_weights_equal_those_of_the_folder(network, bert):
    theirs = AutoModel.from_pretrained(bert).state_dict()
    ours = network(encoder_init="pretrained", seed=3).encoder.state_dict()
    assert len(ours) > 15 and all(torch.equal(x, theirs[name]) for name, x in ours.items())
    fresh = network(seed=3).encoder.state_dict()
    assert any(not torch.equal(x, theirs[name]) for name, x in fresh.items())
    # the encoder sees what BERT would see of its own word embeddings, but for the time
    model = AutoModel.from_pretrained(bert).eval()
    words = model.get_input_embeddings()(torch.arange(L)[None])
    with torch.no_grad():
        made = network(encoder_init="pretrained", latent_dim=32)
        made.time_vector.out.weight.zero_()
        made.time_vector.out.bias.zero_()
        torch.testing.assert_close(made(words, torch.rand(1)), model(torch.arange(L)[None]).last_hidden_state)


def test_a_network_rebuilt_from_its_saved_config_is_equal(network, tmp_path):
    made = network(encoder_init="pretrained")
    made.save_config(tmp_path)
    again = network(encoder_config=str(tmp_path / "config.json"), seed=9)
    again.load_state_dict(made.state_dict())
    z, time = noisy()
    assert torch.equal(made(z, time), again(z, time))


def test_dropout_follows_the_options(network):
    z, time = noisy()

    def varies(options=PLAIN, **changes) -> bool:
        made = network(options, **changes).train()
        return not torch.equal(made(z, time), made(z, time))

    assert varies() and varies(encoder_dropout=0.5)
    assert not varies(encoder_dropout=0.0) and not varies(replace(PLAIN, disable_dropout=True))


def test_the_default_layout_is_bert_base():
    config = encoder_config(None)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == ("bert", 12, 768)
    with torch.device("meta"):
        made = make_denoiser(128, 128, PLAIN)
    assert sum(p.numel() for p in made.encoder.parameters()) == pytest.approx(85.4e6, rel=0.01)


def test_an_invalid_encoder_is_a_one_line_error(network, bert, tmp_path):
    cases = []
    GPT2Config(n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    cases.append((dict(encoder_config=str(tmp_path / "gpt2")), "is a 'gpt2' model, which is not supported"))
    cases.append((dict(encoder_config=str(tmp_path / "absent")), "cannot be read"))
    cases.append(
        (dict(encoder_config=None, encoder_init="pretrained"), "pretrained needs weights: set --encoder_config")
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((bert / "config.json").read_text())
    cases.append((dict(encoder_config=str(tmp_path / "empty"), encoder_init="pretrained"), "holds no weights"))
    (tmp_path / "deeper").mkdir()
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    (tmp_path / "deeper" / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    cases.append((dict(encoder_config=str(tmp_path / "deeper"), encoder_init="pretrained"), "lacks 16 weights"))
    for changes, message in cases:
        with pytest.raises(UserError, match=message) as error:
            network(**changes)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="longer than the 24 positions"):
        make_denoiser(D, 25, PLAIN, own_options=EncoderDenoiserOptions(encoder_config=str(bert)))
    with pytest.raises(UserError, match="16 positions of latents and 9 of sources are more than the encoder has, 24"):
        own = EncoderDenoiserOptions(encoder_config=str(bert))
        make_denoiser(D, 16, PLAIN, source_dim=4, own_options=own).check_source_length(9)


def test_the_states_of_a_source_stand_behind_the_latents(bert):
    """They change the prediction, their padding and a dropped source do not, and every parameter gets a gradient."""
    torch.manual_seed(0)
    own = EncoderDenoiserOptions(encoder_config=str(bert), encoder_dropout=0.0)
    network = make_denoiser(D, 16, PLAIN, source_dim=4, own_options=own)
    z, time, states = torch.randn(B, L, D), torch.rand(B), torch.randn(B, 5, 4)
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    condition = Condition.of(None, states, mask)
    found = network(z, time, None, condition)
    assert found.shape == (B, L, D)
    padded = replace(condition, source=torch.where(mask[..., None], states, 9.0))
    torch.testing.assert_close(network(z, time, None, padded), found)
    other = replace(condition, source=states.flip(0))
    assert (network(z, time, None, other) - found).abs().max() > 1e-4
    null = network(z, time, None, condition.null())
    torch.testing.assert_close(null, network(z, time, None, other.null()))
    torch.testing.assert_close(null, network(z, time), atol=1e-5, rtol=1e-4)
    found.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_the_last_layer_stays_in_float32_under_autocast(network):
    """As in the other networks: its error would be divided by alpha (model.blocks.project_in_float32)."""
    made, seen = network(), []
    made.output_proj[-1].register_forward_hook(lambda layer, args, out: seen.append((args[0], out)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made(*noisy())
    ((hidden, projected),) = seen
    last = made.output_proj[-1]
    assert hidden.dtype == projected.dtype == out.dtype == torch.float32
    assert torch.equal(out, torch.nn.functional.linear(hidden, last.weight, last.bias))
    assert not torch.equal(out, out.bfloat16().float())

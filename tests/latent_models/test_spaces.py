"""The compressed space and the space of encoder states, around tiny language models of every family."""

from __future__ import annotations

import math

import pytest
import torch

from latent_models.autoencoders.options import PerceiverOptions
from latent_models.autoencoders.perceiver import PerceiverAutoencoder
from latent_models.families import FAMILIES
from latent_models.spaces.compressed import CompressedSpace
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.normalization import LatentStatistics, NormalizedSpace
from utils.errors import UserError
from utils.records import Batch, Latents

LENGTH, DIM = 6, 8


@pytest.fixture
def compressed(language_model):
    def of(family: str = "bart", frozen: bool = True, **options) -> CompressedSpace:
        model = language_model(family, frozen=frozen)
        torch.manual_seed(0)
        sizes = PerceiverOptions(num_encoder_latents=LENGTH, dim_ae=DIM, num_layers=1, **options)
        return CompressedSpace(model, PerceiverAutoencoder(model.dim, sizes, 40, head_dim=8)).eval()

    return of


@pytest.fixture
def batch(texts):
    def of(model, length: int = 40) -> Batch:
        tokens = model.tokenize(texts, length)
        return Batch(tokens.input_ids, tokens.attention_mask.bool())

    return of


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_texts_of_any_family_are_compressed_and_decoded(compressed, batch, family):
    space = compressed(family)
    tokens = batch(space.language_model)
    latents = space.encode(tokens)
    assert latents.x0.shape == (4, LENGTH, DIM) == (4, space.length, space.dim)
    assert latents.mask.shape == (4, LENGTH) and latents.mask.all() and not space.variable_length
    normalized = NormalizedSpace(space, LatentStatistics(DIM, LENGTH))
    assert normalized.sample_mask(3, torch.Generator()).tolist() == [[True] * LENGTH] * 3
    texts = space.decode(latents, max_length=10, num_beams=2)
    assert len(texts) == 4 and space.decode(space.encode(tokens), max_length=10, num_beams=2) == texts


def test_noised_latents_stay_in_the_space_and_keep_their_norm(compressed, batch):
    generator = torch.Generator().manual_seed(0)
    for options in ({"l2_normalize_latents": True}, {}):
        space = compressed(**options)
        x0 = 3 * space.encode(batch(space.language_model)).x0.detach()
        noise = torch.randn(x0.shape, generator=generator)
        sigma = torch.tensor([0.0, 0.3, 0.8, 1.0])
        z = space.add_latent_noise(space.project(x0), noise, sigma)
        torch.testing.assert_close(z[0], space.project(x0)[0])  # sigma 0 changes nothing
        kept = torch.nn.functional.cosine_similarity(z.flatten(1), x0.flatten(1))
        assert kept[0] > kept[1] > kept[2] > kept[3]
        if options:
            torch.testing.assert_close(z.norm(dim=-1), torch.full(z.shape[:2], DIM**0.5))
        else:
            torch.testing.assert_close(
                z.square().mean((1, 2)).sqrt(), x0.square().mean((1, 2)).sqrt(), rtol=0.3, atol=0
            )


def test_compressed_latents_do_not_depend_on_padding(compressed, batch):
    space = compressed()
    tokens = batch(space.language_model)
    latents = space.encode(tokens)
    for row, length in enumerate(tokens.attention_mask.sum(1).tolist()):
        alone = Batch(tokens.input_ids[row : row + 1, :length], tokens.attention_mask[row : row + 1, :length])
        torch.testing.assert_close(space.encode(alone).x0[0], latents.x0[row], atol=1e-4, rtol=1e-3)


def test_projection_gives_the_norm_of_the_latents(compressed, batch):
    space = compressed(l2_normalize_latents=True)
    x0 = space.encode(batch(space.language_model)).x0
    torch.testing.assert_close(x0.norm(dim=-1), torch.full(x0.shape[:2], math.sqrt(DIM)))
    torch.testing.assert_close(space.project(x0), x0)
    torch.testing.assert_close(space.project(3 * x0), x0)
    plain = compressed()
    assert plain.project(x0) is x0


def test_the_autoencoder_has_gradients_and_the_frozen_model_has_none(compressed, batch):
    """Its loss is the reconstruction loss of what it decodes, and gradients stop at the language model."""
    space = compressed().train()
    tokens = batch(space.language_model)
    losses = space(tokens)
    states = space.autoencoder.decode(space.encode(tokens).x0)
    by_hand = space.language_model.reconstruction_loss(states, None, tokens.input_ids, tokens.attention_mask)
    assert set(losses) == {"reconstruction"}
    torch.testing.assert_close(losses["reconstruction"], by_hand)
    losses["reconstruction"].mean().backward()
    assert all(p.grad is not None for p in space.autoencoder.parameters())
    assert all(p.grad is None for p in space.language_model.parameters())
    tuned = compressed(frozen=False).train()
    tuned(tokens)["reconstruction"].mean().backward()
    assert all(p.grad is not None for p in tuned.parameters())


def test_a_text_longer_than_the_autoencoder_allows_is_refused(compressed, texts):
    space = compressed()
    ids = torch.full((1, 41), 9)
    with pytest.raises(UserError, match="41 tokens exceeds the autoencoder's 40"):
        space.encode(Batch(ids, torch.ones_like(ids, dtype=torch.bool)))


def test_fingerprints_depend_on_the_autoencoder_and_the_language_model(compressed):
    one, other = compressed(), compressed()
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        other.autoencoder.encoder.queries[0, 0] += 1
    assert one.fingerprint() != other.fingerprint()
    other = compressed()
    with torch.no_grad():
        next(other.language_model.parameters())[0, 0] += 1
    assert one.fingerprint() != other.fingerprint()


# --------------------------------------------------------------------------------------------------- encoder states


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_encoder_states_are_padded_to_the_length_of_the_space(language_model, batch, texts, family):
    model = language_model(family)
    space = EncoderStatesSpace(model, 44).eval()
    tokens = batch(model)
    latents = space.encode(tokens)
    T = tokens.input_ids.shape[1]
    assert latents.x0.shape == (4, 44, 16) == (4, space.length, space.dim) and space.variable_length
    assert torch.equal(latents.mask[:, :T], tokens.attention_mask) and not latents.mask[:, T:].any()
    assert not latents.x0[~latents.mask].any(), "zero at padding"
    states = model.encode(tokens.input_ids, tokens.attention_mask)
    assert torch.equal(latents.x0[:, :T][tokens.attention_mask], states[tokens.attention_mask])
    assert space.project(latents.x0) is latents.x0
    expected = model.generate(states, tokens.attention_mask, max_length=10, num_beams=2)
    assert space.decode(latents, max_length=10, num_beams=2) == expected
    junk = Latents(torch.where(latents.mask[..., None], latents.x0, 1e3), latents.mask)
    assert space.decode(junk, max_length=10, num_beams=2) == expected


def test_lengths_beyond_the_model_or_the_space_are_refused(language_model):
    model = language_model()
    with pytest.raises(UserError, match="--max_seq_len 49 is longer than .* can read: give 48 or less"):
        EncoderStatesSpace(model, 49)
    assert EncoderStatesSpace(language_model("t5"), 500).length == 500
    ids = torch.full((1, 9), 9)
    with pytest.raises(UserError, match="9 tokens exceeds the 8 positions"):
        EncoderStatesSpace(model, 8).encode(Batch(ids, torch.ones_like(ids, dtype=torch.bool)))


def test_fingerprints_of_encoder_states_depend_on_their_length(language_model):
    model = language_model()
    assert EncoderStatesSpace(model, 8).fingerprint() != EncoderStatesSpace(model, 9).fingerprint()
    assert EncoderStatesSpace(model, 8).fingerprint() == EncoderStatesSpace(language_model(), 8).fingerprint()

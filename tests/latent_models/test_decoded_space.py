"""Latents that a language model decodes: their precision, and the language model that a run of the decoder needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix_decoder import PrefixDecoder
from latent_models.pooling import make_pooling
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.decoded import DecodedSpace, causal_fingerprint
from latent_models.spaces.encoder_states import EncoderStatesSpace
from latent_models.spaces.scaling import LatentScaling
from latent_models.spaces.sentence import SentenceSpace
from latent_models.text_encoders import TextEncoder
from tests.latent_models.conftest import MAX_LENGTH, TEXTS
from tests.latent_models.tiny_causal import make_causal
from tests.latent_models.tiny_encoders import WIDTH, make_encoder
from utils.errors import UserError
from utils.records import Batch

LONGEST = 40  # tokens


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("decoded")
    make_encoder("bert", root / "bert", TEXTS)
    make_causal(root / "gpt2", "gpt2", TEXTS)
    make_causal(root / "other", "gpt2", TEXTS, std=0.2)
    return root


@pytest.fixture
def decoded(folders, language_model):
    """kind of the latents -> a space whose whitening is estimated from TEXTS."""

    def make(kind: str, decoder: str = "gpt2", mode: str = "freeze") -> DecodedSpace:
        scaling = LatentScaling(WIDTH, "whiten")
        if kind == "states":
            space: LatentSpace = EncoderStatesSpace(language_model(), MAX_LENGTH).requires_grad_(False)
        else:
            encoder = TextEncoder.from_pretrained(str(folders / "bert"))
            space = SentenceSpace(encoder, make_pooling(kind, None, WIDTH), scaling)
        options = TextDecoderOptions(decoder_model=str(folders / decoder), decoder_mode=mode, num_prefix_tokens=1)
        made = DecodedSpace(
            space,
            PrefixDecoder.build(options, space.length, WIDTH, 12),
            scaling if kind == "states" else None,
        ).eval()
        with torch.no_grad():
            latents = made.unscaled.encode(batch_of(made))
        made.scaling.estimate([(latents.x0, latents.mask)])
        return made

    return make


def batch_of(space: DecodedSpace) -> Batch:
    model = space.language_model
    tokens = model.tokenizer(TEXTS, max_length=LONGEST, truncation=True, padding=True, return_tensors="pt")
    return Batch(tokens["input_ids"], tokens["attention_mask"].bool())


@pytest.mark.parametrize("kind", ["mean", "sentences", "states"])
def test_latents_of_frozen_encoders_are_those_of_float32_under_autocast(decoded, kind):
    """Those of a cache are: where whitening divides by a small deviation, rounding to bfloat16 would be all of it."""
    space = decoded(kind)
    with torch.no_grad():
        expected, unscaled = space.encode(batch_of(space)), space.encode_unscaled(batch_of(space))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, cached = space.encode(batch_of(space)), space.unscaled.encode(batch_of(space))
            texts = space.encode_texts(TEXTS, LONGEST)
    assert found.x0.dtype == torch.float32
    for one, other in ((found, expected), (texts, expected), (cached, unscaled)):
        assert torch.equal(one.x0, other.x0) and torch.equal(one.mask, other.mask)


def test_a_pooling_that_trains_has_the_precision_of_training(decoded):
    space = decoded("learned")
    batch = batch_of(space)
    full = space.encode_unscaled(batch).x0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = space.encode_unscaled(batch).x0
        space.requires_grad_(False)  # as in stage 2
        frozen = space.encode_unscaled(batch).x0
    assert not torch.allclose(half, full, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen, full)


@pytest.mark.parametrize("mode", ["freeze", "lora", "ft"])
def test_a_run_needs_the_language_model_of_its_decoder(decoded, mode):
    saved = {"decoder_mode": mode, "decoder_fingerprint": causal_fingerprint(decoded("mean", "gpt2", mode).decoder.lm)}
    decoded("mean", "gpt2", mode).check_decoder(saved, Path("run"))
    other = decoded("mean", "other", mode)
    other.check_decoder({}, Path("run"))  # of the first release
    if mode == "ft":
        other.check_decoder(saved, Path("run"))  # its checkpoint holds all weights
        return
    with pytest.raises(UserError, match="other is not the language model that run was trained with.*--decoder_model"):
        other.check_decoder(saved, Path("run"))

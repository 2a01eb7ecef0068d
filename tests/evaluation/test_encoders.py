from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BartConfig, BartModel, GPT2Config, GPT2Model

from evaluation import encoders
from evaluation.encoders import SentenceEncoder
from evaluation.mauve import EMBEDDING_SCALING, mauve, mauve_of_features
from evaluation.protocols import compute_mauves, evaluate_texts, reference_metrics
from utils.errors import UserError


def test_an_embedding_is_the_mean_over_the_tokens_of_its_text(encoder, encoder_folder, stories):
    model, tokenizer = AutoModel.from_pretrained(encoder_folder).eval(), AutoTokenizer.from_pretrained(encoder_folder)
    texts = ["Ann saw a dog.", stories[7], "Ben", ""]
    found = encoder.features(texts)
    assert found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    for text, row in zip(texts, found, strict=True):  # one by one, so that there is no padding
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert np.allclose(row, mean / mean.norm(), atol=1e-5)


def test_embeddings_do_not_depend_on_the_other_texts_or_their_order(encoder, stories):
    assert np.allclose(encoder.features(stories)[:5], encoder.features(stories[:5]), atol=1e-5)
    assert np.allclose(encoder.features(stories[::-1])[::-1], encoder.features(stories), atol=1e-5)
    assert encoder.features([]).shape == (0, 16)


def test_long_texts_are_cut_at_the_positions_of_the_model(encoder):
    assert encoder.max_length == 32
    assert np.allclose(encoder.features(["dog " * 30]), encoder.features(["dog " * 500]), atol=1e-6)


def test_embeddings_of_references_are_kept_on_disk(encoder_folder, stories, tmp_path):
    first, second = encoders.load(encoder_folder), encoders.load(encoder_folder)
    for one in (first, second):
        one.cache_dir = tmp_path
    made = first.features(stories, on_disk=True)
    assert len(list(tmp_path.glob("embeddings-*.npz"))) == 1
    second.model = None  # it is not needed any more
    second.__dict__["fingerprint"] = first.fingerprint
    assert np.array_equal(second.features(stories, on_disk=True), made)


def test_mauve_on_embeddings_has_its_own_scaling_and_key(encoder, scorer, stories):
    even, odd = stories[::2], stories[1::2]
    found = evaluate_texts(even, {"val": odd, "train": stories}, stories, scorer, prefix="m/", encoder=encoder)
    by_hand = mauve_of_features(encoder.features(even), encoder.features(odd), scaling=8.0)
    assert found["m/tiny-bert_val_mauve"] == by_hand.score == mauve(even, odd, encoder, scaling=EMBEDDING_SCALING).score
    assert "m/tiny-bert_train_mauve" in found and "m/local_lm_val_mauve" in found
    settings = found["protocol"]["mauve_encoder"]
    assert settings["scaling"] == 8 and settings["pooling"] == "mean over tokens, unit norm"
    assert settings["name"] == "tiny-bert" and settings["fingerprint"] == encoder.fingerprint and settings["n"] == 40
    assert found["protocol"]["mauve"]["scaling"] == 5
    real = reference_metrics(odd, even, scorer, split="val", num_samples=20, encoder=encoder)
    assert {"reference/tiny-bert_train_val_mauve", "reference/tiny-bert_train_train_mauve"} <= set(real)
    assert 0 <= real["reference/val_linear_auc"] <= 1


def test_one_model_in_both_roles_has_two_keys(scorer, stories):
    both = SentenceEncoder(scorer.model.base_model, scorer.tokenizer, scorer.name)
    found = compute_mauves({"val": (stories[:40], stories[40:])}, scorer, both)
    assert set(found.numbers) == {"local_lm_val_mauve", "local_lm-embeddings_val_mauve"}


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_other_layouts_give_embeddings_too(kind, scorer, tmp_path):
    size = len(scorer.tokenizer)
    if kind == "decoder":
        model = GPT2Model(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    else:
        model = BartModel(
            BartConfig(
                vocab_size=size, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
                pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
            )
        )  # fmt: skip
    model.save_pretrained(tmp_path)
    scorer.tokenizer.save_pretrained(tmp_path)
    found = encoders.load(tmp_path).features(["Ann saw a dog.", "", "Tom"])
    assert found.shape == (3, 16) and np.isfinite(found).all()


def test_what_is_no_encoder_gives_one_line(tmp_path, encoder_folder):
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in encoder_folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for source in (tmp_path / "absent", tmp_path / "empty", damaged, "no-such/encoder"):
        with pytest.raises(UserError, match="--mauve_encoder") as error:
            encoders.load(source)
        assert "\n" not in str(error.value)

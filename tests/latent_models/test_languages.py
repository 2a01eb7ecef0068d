"""Multilingual models with their real tokenizers: language codes of inputs and of decoding, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, MBart50Tokenizer, MBartConfig, MBartTokenizer

from latent_models.language_models import LanguageModel
from utils.errors import UserError

WORDS = ["the", "dog", "ran", "home", "der", "Hund", "lief", "heim"]
VOCABULARY = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{w}", -1.0) for w in WORDS)]
TEXT = "the dog ran"


@pytest.fixture(scope="module")
def mbart(tmp_path_factory):
    """tokenizer class, language it is saved with -> the folder of a tiny mBART."""

    def of(kind: type, saved: str | None = None) -> Path:
        folder = tmp_path_factory.mktemp("mbart")
        codes = [(code, 0.0) for code in kind(src_lang=None).lang_code_to_id]
        tokenizer = kind(vocab=[*VOCABULARY, *codes, ("<mask>", 0.0)], src_lang=saved)
        torch.manual_seed(0)
        config = MBartConfig(
            vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32,
            decoder_start_token_id=2 if kind is MBart50Tokenizer else None,
        )  # fmt: skip
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        # published files have null; save_pretrained writes the class's default
        metadata = folder / "tokenizer_config.json"
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "src_lang": saved}))
        return folder

    return of


@pytest.mark.parametrize("kind", [MBartTokenizer, MBart50Tokenizer])
def test_encoder_and_decoder_inputs_mark_the_language_as_in_training(mbart, kind):
    model = LanguageModel.from_pretrained(str(mbart(kind)), language="de")
    code = model.tokenizer.convert_tokens_to_ids("de_DE")
    assert model.language == "de_DE"
    ids, mask = model.tokenize([TEXT], 20).values()
    words = model.tokenizer.convert_tokens_to_ids([f"▁{word}" for word in TEXT.split()])
    assert ids[0].tolist() == ([*words, 2, code] if kind is MBartTokenizer else [code, *words, 2])
    # the decoder inputs of transformers for a target in that language
    target = model.tokenizer(text_target=TEXT, return_tensors="pt").input_ids
    states = model.encode(ids, mask)
    if kind is MBartTokenizer:  # rolls the code to the front
        expected = model.model(input_ids=ids, attention_mask=mask, labels=target).logits
    else:  # starts with </s>
        shifted = torch.cat([torch.tensor([[2]]), target[:, :-1]], 1)
        expected = model.model(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted).logits
    torch.testing.assert_close(model.logits(states, mask, ids), expected)


@pytest.mark.parametrize("kind", [MBartTokenizer, MBart50Tokenizer])
def test_decoding_starts_with_the_language_code(mbart, kind):
    model = LanguageModel.from_pretrained(str(mbart(kind)), language="fr_XX")
    code = model.tokenizer.convert_tokens_to_ids("fr_XX")
    seen = []
    original = model.model.generate
    model.model.generate = lambda **given: seen.append(original(**given)) or seen[-1]
    texts = model.generate(torch.randn(2, 3, 16), max_length=6, num_beams=1)
    start = [code] if kind is MBartTokenizer else [2, code]
    assert all(row[: len(start)] == start for row in seen[0].tolist())
    assert len(texts) == 2 and not any("fr_XX" in text for text in texts)


def test_the_language_is_part_of_the_fingerprint(mbart):
    folder = mbart(MBart50Tokenizer)
    german, french, same = (
        LanguageModel.from_pretrained(str(folder), language=code).fingerprint() for code in ("de", "fr", "de")
    )
    assert german == same != french


def test_a_tokenizer_that_was_saved_with_a_language_needs_no_flag(mbart):
    assert LanguageModel.from_pretrained(str(mbart(MBart50Tokenizer, "ro_RO"))).language == "ro_RO"


@pytest.mark.parametrize(
    "language, message",
    [(None, "the language of the texts is not set"), ("tlh", "does not support the language 'tlh'")],
)
def test_a_missing_or_unknown_language_raises_an_error_of_one_line(mbart, language, message):
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.from_pretrained(str(mbart(MBartTokenizer)), language=language)
    assert "\n" not in str(refused.value) and "--target_language, one of ar_AR" in str(refused.value)


def test_a_model_without_language_codes_ignores_the_language_of_the_corpus(language_model):
    model = language_model("mbart", language="en")  # an mBART whose tokenizer is of one language
    assert model.language is None and model.forced_bos_id is None and model.start_id == 2

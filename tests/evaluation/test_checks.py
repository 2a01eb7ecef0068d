"""A scorer or classifier whose file lacks weights, or that is not causal, is rejected with a one-line error."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from evaluation import classifiers, scorers
from utils.errors import UserError

SMALL = dict(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
    encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, pad_token_id=0,
)  # fmt: skip
TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)


@pytest.fixture(scope="module")
def models(tmp_path_factory, local_lm_folder):
    """name -> the folder of a tiny model with random weights and the tokenizer of the tests."""
    tokenizer = AutoTokenizer.from_pretrained(local_lm_folder)
    tokenizer.pad_token = tokenizer.eos_token
    size = len(tokenizer)
    torch.manual_seed(0)
    made = {
        "gpt": GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=32, n_embd=16, n_layer=1, n_head=1)),
        "bart": BartForConditionalGeneration(BartConfig(vocab_size=size, **SMALL)),
        "bert": BertLMHeadModel(BertConfig(vocab_size=size, **TINY)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def test_a_causal_model_with_tied_weights_is_complete(models):
    assert len(scorers.load(models / "gpt").nll(["Ann saw a dog."]).nll) == 1


@pytest.mark.parametrize(
    "name, message", [("bart", "its file lacks .* weights of one"), ("bert", "depend on later tokens")]
)
def test_a_scorer_must_be_a_causal_language_model(models, name, message, capfd):
    with pytest.raises(UserError, match=f"{name} is not a causal language model: .*{message}") as refused:
        scorers.load(models / name)
    assert "\n" not in str(refused.value) and "LOAD REPORT" not in capfd.readouterr().err


def test_a_classifier_must_have_a_classification_head(models):
    with pytest.raises(UserError, match="bert is not a sequence classifier: its file lacks .* weights of one"):
        classifiers.load(models / "bert", ("0", "1"))

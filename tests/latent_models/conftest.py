"""Tiny language models of every family, with random weights, saved as ordinary folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

TEXTS = [
    "The dog ran home.",
    "A cat sat down, and it slept all day!",
    "Yes.",
    "Zoë said “¿qué?” to 東京 🙂; don't (ever) do that — 1,000 times.",
]
MAX_LENGTH = 48  # tokens
WIDTH = 16
RAGGED, STATES = 24, 9  # texts of many lengths, and the number of states that each is decoded from

_BARTS = dict(
    d_model=WIDTH,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    max_position_embeddings=MAX_LENGTH,
    decoder_start_token_id=2,
)
_T5S = dict(d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2, decoder_start_token_id=1)
CONFIGS = {"bart": _BARTS, "mbart": _BARTS, "t5": _T5S, "mt5": _T5S}


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> the folder of a tiny model of it with its tokenizer; built once per session, not to be changed."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from latent_models.tokenizers.training import train_tokenizer

    root = tmp_path_factory.mktemp("language_models")

    def folder(family: str) -> Path:
        place = root / family
        if not place.exists():
            tokenizer = train_tokenizer(TEXTS, "bpe", 300, MAX_LENGTH)
            config = AutoConfig.for_model(
                family, vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2, **CONFIGS[family]
            )
            torch.manual_seed(0)
            model = AutoModelForSeq2SeqLM.from_config(config)
            # weights as large as trained ones, so that outputs are not equal only because all are near zero
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)
        return place

    return folder


@pytest.fixture
def language_model(tiny):
    """family -> a fresh LanguageModel of it."""
    from latent_models.language_models import LanguageModel

    return lambda family="bart", **options: LanguageModel.from_pretrained(str(tiny(family)), **options)


@pytest.fixture
def ragged(language_model):
    """family -> a model whose texts end at many lengths, states (RAGGED, STATES, d_lm) and a mask (RAGGED, STATES)."""

    def of(family):
        model, generator = language_model(family), torch.Generator().manual_seed(0)
        head = model.model.get_output_embeddings()
        # untied from the embeddings
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        end = torch.randn(model.dim, generator=generator)
        # the end token is very likely or very unlikely, depending on the state
        head.weight[model.tokenizer.eos_token_id] = 4 * head.weight.std() * end
        states = 4 * torch.randn(RAGGED, STATES, model.dim, generator=generator)
        lengths = torch.randint(1, STATES + 1, (RAGGED,), generator=generator)
        return model, states, torch.arange(STATES) < lengths[:, None]

    return of


@pytest.fixture
def rows_computed(monkeypatch):
    """The number of rows in each call of a model's decoder."""

    def of(model):
        seen = []
        model.model.get_decoder().register_forward_hook(lambda *call: seen.append(len(call[-1].last_hidden_state)))
        return seen

    return of

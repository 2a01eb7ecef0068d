"""A real language model of GPT-2's layout, two layers wide enough to test with, saved to disk once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of Hugging Face is imported

import pytest
import torch

from evaluation import encoders, scorers
from evaluation.local_lm import train_local

NAMES = ("Ann", "Tom", "Eva", "Ben")
ANIMALS = ("dog", "cat", "fox", "hen", "owl")
VERBS = ("saw", "fed", "drew", "lost")


@pytest.fixture(scope="session")
def stories() -> list[str]:
    """Eighty different short texts."""
    return [
        f"{name} {verb} a {animal}. Then {name} went home." for name in NAMES for animal in ANIMALS for verb in VERBS
    ]


@pytest.fixture(scope="session")
def local_lm_folder(tmp_path_factory, stories):
    return train_local(
        stories,
        tmp_path_factory.mktemp("scorer") / "local_lm",
        width=32,
        layers=2,
        heads=2,
        steps=30,
        batch_size=16,
        lr=1e-2,
        max_length=64,
        progress=lambda line: None,
    )


@pytest.fixture(scope="session")
def scorer(local_lm_folder) -> scorers.Scorer:
    return scorers.load(str(local_lm_folder))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory, stories):
    """A tiny BertModel with random weights, as a folder: embeddings of such a model still tell texts apart."""
    from transformers import BertConfig, BertModel, BertTokenizer

    root = tmp_path_factory.mktemp("encoder")
    words = sorted({word for text in stories for word in text.lower().replace(".", " .").split()})
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=5 + len(words),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
                initializer_range=0.5,
            )
        )
    model.save_pretrained(root / "tiny-bert")
    BertTokenizer(vocab=str(root / "vocab.txt")).save_pretrained(root / "tiny-bert")
    return root / "tiny-bert"


@pytest.fixture(scope="session")
def encoder(encoder_folder):
    return encoders.load(encoder_folder)

"""A real language model of GPT-2's layout, two layers wide enough to test with, saved to disk once."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything of Hugging Face is imported

import pytest

from evaluation import scorers
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

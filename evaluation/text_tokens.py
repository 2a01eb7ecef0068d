"""Tokenization of texts in the two ways that the published metrics use. This module has no metric.

`tokens` is spaCy's English rule tokenizer, the one inside en_core_web_sm, which needs no download; `vocabulary` is
scikit-learn's count vectorizer with its default settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from evaluation.optional import optional_import

WORD = re.compile(r"(?u)\b\w\w+\b")  # scikit-learn's default: two or more word characters


def is_empty(text: str) -> bool:
    """Return True if the text has no character but whitespace."""
    return not text.strip()


@cache
def _spacy_tokenizer() -> Any:
    return optional_import("spacy", "spacy", "counting n-grams").blank("en").tokenizer


def tokenizer_version() -> str:
    """Return name and version of the tokenizer behind `tokens`; empty if it is not installed."""
    try:
        return f"spacy {version('spacy')}"
    except PackageNotFoundError:
        return ""


def tokens(text: str) -> list[str]:
    """Split a text into words and punctuation marks, with their case. An empty text has none."""
    return [token.text for token in _spacy_tokenizer()(text)]


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Return the lower-cased words of two or more characters that occur in any of the texts."""
    return {word for text in texts for word in WORD.findall(text.lower())}


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield all len(words) - n + 1 runs of n words in order; none if there are fewer than n words."""
    return zip(*(words[i:] for i in range(n)), strict=False)

"""Texts -> words, in the two ways that the published metrics count them. No metric here.

`tokens` is spaCy's English rule tokenizer, the one inside en_core_web_sm, which needs no download; `vocabulary` is
scikit-learn's count vectoriser with its default settings.
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
    """True of a generation that came out as nothing, or as blanks."""
    return not text.strip()


@cache
def _spacy_tokenizer() -> Any:
    return optional_import("spacy", "spacy", "counting n-grams").blank("en").tokenizer


def tokenizer_version() -> str:
    """Of what `tokens` splits by; empty where it is not installed."""
    try:
        return f"spacy {version('spacy')}"
    except PackageNotFoundError:
        return ""


def tokens(text: str) -> list[str]:
    """Words and punctuation marks of a text, case kept; none for the empty text."""
    return [token.text for token in _spacy_tokenizer()(text)]


def vocabulary(texts: Iterable[str]) -> set[str]:
    """The lower-cased words of two or more characters that occur in any of the texts."""
    return {word for text in texts for word in WORD.findall(text.lower())}


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n words, in order: len(words) - n + 1 of them, none where the text is shorter."""
    return zip(*(words[i:] for i in range(n)), strict=False)

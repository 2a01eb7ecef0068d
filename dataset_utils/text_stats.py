"""Lengths in words and characters, and scripts, of texts. No tokenizer is needed."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

PERCENTILES = (50, 90, 95, 99, 100)
MAX_MEASURED = 20_000  # texts of a split that are measured, evenly spaced


def evenly_spaced(texts: Sequence[str], max_texts: int = MAX_MEASURED) -> Sequence[str]:
    """At most max_texts of the texts, every n-th one from the first."""
    return texts[:: max(1, -(-len(texts) // max_texts))]


def percentiles(counts: Sequence[int] | np.ndarray) -> dict[str, int]:
    """The percentiles of lengths, each the length of a text: "50", "90", ..., "100" -> length."""
    return {str(p): int(np.percentile(counts, p, method="higher")) for p in PERCENTILES}


def lengths(texts: Sequence[str]) -> dict[str, Any]:
    """Percentiles of the lengths in words (what blanks separate) and in characters."""
    return {
        "words": percentiles([len(text.split()) for text in texts]),
        "characters": percentiles([len(text) for text in texts]),
    }


def script_shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of each script among the letters and marks of texts, the largest first: {"Latin": 0.97, "Greek": 0.03}."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    of_script: Counter[str] = Counter()
    for character, number in counts.items():
        if script := _script(character):
            of_script[script] += number
    total = of_script.total()
    return {script: number / total for script, number in of_script.most_common()}


_NAMES = {"CJK": "Han", "IDEOGRAPHIC": "Han", "HANGUL": "Hangul", "HALFWIDTH": "Katakana", "KATAKANA-HIRAGANA": "Kana"}
_WIDE = {"LATIN": "Latin", "HANGUL": "Hangul", "KATAKANA": "Katakana"}  # fullwidth and halfwidth letters


@cache
def _script(character: str) -> str | None:
    """Script of a letter or mark, after its name in Unicode; None for digits, punctuation, and marks of all scripts."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    words = unicodedata.name(character, "").split()
    if not words or words[0] in ("COMBINING", "MODIFIER", "VARIATION"):
        return None
    if words[0] in ("FULLWIDTH", "HALFWIDTH") and len(words) > 1:
        return _WIDE.get(words[1], "Latin")
    return _NAMES.get(words[0], words[0].title())

"""Words of texts, in every script. This module has no metric.

Published metrics split texts by rules for English. Their rules are kept, so that a text in English has the words it
always had, and extended in two ways: letters and marks of every script form words, and where a script writes no blanks
between words (Chinese, Japanese, Thai, ...) every character is a word.

`tokens` is spaCy's English rule tokenizer, the one inside en_core_web_sm, which needs no download; `vocabulary` is
scikit-learn's count vectorizer with its default settings; `words` is the tokenizer of ROUGE.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import regex

from evaluation.optional import optional_import
from utils.scripts_of_text import UNSPACED, UNSPACED_SCRIPTS

WORD_RULE = "words"  # in protocols: letters, marks and digits of every script

_CHARACTER = rf"[{UNSPACED}]\p{{M}}*"
_EMOJI = r"(?=\p{Extended_Pictographic})\X"  # with all that is joined to it
_JOINERS = "\u200c\u200d"  # within words of Persian, Hindi and others
_WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{UNSPACED}]][[\p{{L}}\p{{M}}\p{{N}}{_JOINERS}]--[{UNSPACED}]]*"
# two or more word characters, of which letters may carry marks
_LONG_WORD = rf"(?<![\w\p{{M}}])[[\w\p{{M}}\p{{N}}{_JOINERS}]--[{UNSPACED}]]{{2,}}"
_CHARACTER_RE = regex.compile(_CHARACTER)
_WORDS_RE = regex.compile("|".join([_CHARACTER, _EMOJI, _WORD]), regex.V1)
_VOCABULARY_RE = regex.compile("|".join([_CHARACTER, _LONG_WORD]), regex.V1)
# the same for texts in ASCII, in a third of the time
_ASCII_WORDS_RE, _ASCII_VOCABULARY_RE = re.compile(r"[a-z0-9]+"), re.compile(r"(?a)\b\w\w+\b")
_SCRIPT_RES = {script: regex.compile(rf"\p{{{script}}}") for script in UNSPACED_SCRIPTS}


def is_empty(text: str) -> bool:
    """Return True if the text has no character but whitespace."""
    return not text.strip()


def compose(text: str) -> str:
    """Return the text with composed letters (NFC): a letter with an accent may be one character or two."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def separate_characters(text: str) -> str:
    """Return the text, composed, with blanks around every character of a script that writes no blanks.

    A tokenizer for English then makes a word of each. Other texts come back as they are.
    """
    return text if text.isascii() else _CHARACTER_RE.sub(r" \g<0> ", compose(text))


def unspaced_scripts(texts: Iterable[str]) -> list[str]:
    """Return the scripts in the texts that write no blanks between words, so that their characters count as words."""
    found: dict[str, None] = {}
    for text in texts:
        if text.isascii():
            continue
        for script, pattern in _SCRIPT_RES.items():
            if script not in found and pattern.search(text):
                found[script] = None
    return [script for script in UNSPACED_SCRIPTS if script in found]


def word_rule(texts: Iterable[str]) -> str:
    """Return what counts as a word in the texts, for protocols."""
    scripts = unspaced_scripts(texts)
    return f"{WORD_RULE}; characters of {', '.join(scripts)}" if scripts else WORD_RULE


@cache
def _spacy_tokenizer() -> Any:
    return optional_import("spacy", "spacy", "counting n-grams").blank("en").tokenizer


def tokenizer_version() -> str:
    """Return name and version of the tokenizer behind `tokens`; empty if it is not installed."""
    try:
        return f"spacy {version('spacy')}, characters of unspaced scripts"
    except PackageNotFoundError:
        return ""


def tokens(text: str) -> list[str]:
    """Split a text into words and punctuation marks, with their case. An empty text has none."""
    separated = separate_characters(text)
    found = _spacy_tokenizer()(separated)
    return [token.text for token in found if separated == text or not token.is_space]


def words(text: str) -> list[str]:
    """Split a text into its lower-cased words as ROUGE does: runs of letters and digits, without punctuation.

    Emoji count as words, so that a text of nothing else is not empty.
    """
    return _ASCII_WORDS_RE.findall(text.lower()) if text.isascii() else _WORDS_RE.findall(compose(text).lower())


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Return the lower-cased words of two or more characters, and characters of unspaced scripts, of all texts."""
    found: set[str] = set()
    for text in texts:
        pattern = _ASCII_VOCABULARY_RE if text.isascii() else _VOCABULARY_RE
        found.update(pattern.findall(compose(text).lower()))
    return found


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield all len(words) - n + 1 runs of n words in order; none if there are fewer than n words."""
    return zip(*(words[i:] for i in range(n)), strict=False)

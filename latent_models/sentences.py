"""Sentences of tokenized texts: where they end, and each as a text of its own with special tokens.

Found from token ids, so that a cache and a batch need no text. A vocabulary of bytes writes "…" as "âĢ¦": its tokens
are read as the text that they stand for. Shapes: B texts, T tokens, K sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import regex
import torch
from torch import Tensor

from utils.scripts_of_text import UNSPACED

ENDS = frozenset(".!?…。！？")  # noqa: RUF001  marks that end a sentence
CLOSERS = frozenset("\"'”’)]}»」』】）》〉")  # noqa: RUF001  marks that may follow them
ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "st", "jr", "sr", "prof", "vs", "etc"))
MARKERS = ("Ġ", "▁", "Ċ")  # before a word, in byte-level and SentencePiece vocabularies
UNSPACED_LETTER = regex.compile(rf"(?=\p{{L}})[{UNSPACED}]")


@dataclass(frozen=True)
class TokenKinds:
    """What each token of a vocabulary of V is."""

    ends: list[bool]  # (V,) only marks that end a sentence, perhaps with closing ones
    closes: list[bool]  # (V,) only closing marks
    starts: list[bool]  # (V,) begins a word, or with a letter of a script without blanks between words
    plain: list[str]  # (V,) the letters, in lower case, without a marker of words
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> TokenKinds:
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        ends, closes, starts, plain = [False] * size, [False] * size, [False] * size, [""] * size
        marked = sum(token.startswith(MARKERS) for token in vocabulary) > size / 20  # else WordPiece or whole words
        of_bytes = _is_of_bytes(tokenizer)
        blanks = "".join(MARKERS) + (" \n" if of_bytes else "")
        for token, i in vocabulary.items():
            letters = (text_of_bytes(token) if of_bytes else token).lstrip(blanks).removeprefix("##")
            marks = set(letters)
            ends[i] = bool(marks & ENDS) and marks <= ENDS | CLOSERS
            closes[i] = bool(marks) and marks <= CLOSERS
            starts[i] = token.startswith(MARKERS) if marked else not token.startswith("##")
            starts[i] = starts[i] or UNSPACED_LETTER.match(letters) is not None
            plain[i] = letters.lower()
        return cls(ends, closes, starts, plain, frozenset(tokenizer.all_special_ids))

    def begins_sentence(self, token: int) -> bool:
        """Whether a token may begin a sentence: it continues no word, and is no digit."""
        return self.starts[token] and not self.plain[token][:1].isdigit()


@cache
def byte_alphabet() -> dict[str, int]:
    """The character of each byte in a byte-level vocabulary: itself where it is printable, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def text_of_bytes(token: str) -> str:
    """The text of a token of a byte-level vocabulary; the token itself if its bytes are no whole characters."""
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token).decode()
    except (KeyError, UnicodeDecodeError):  # a special token with other characters, or a part of a character
        return token


def _is_of_bytes(tokenizer: Any) -> bool:
    """Whether a vocabulary is byte-level: all its tokens but added ones are of that alphabet, a blank among them."""
    vocabulary, alphabet = tokenizer.get_vocab(), byte_alphabet().keys()
    added = tokenizer.get_added_vocab().keys()
    return "Ġ" in vocabulary and all(alphabet >= set(token) for token in vocabulary.keys() - added)


def sentence_numbers(ids: Tensor, mask: Tensor, kinds: TokenKinds) -> Tensor:
    """The number (B, T) of the sentence that each token is in, from 0; -1 at padding and special tokens.

    A sentence ends after marks such as . ! ? and the quotes that close with them, unless a word goes on, a digit
    follows, or an abbreviation stands before.
    """
    numbers = torch.full(ids.shape, -1, dtype=torch.long)
    for i, (row, there) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        current, ended, word = 0, False, ""
        for place, (token, valid) in enumerate(zip(row, there, strict=True)):
            if not valid or token in kinds.special:
                continue
            mark = kinds.ends[token] or (kinds.closes[token] and ended)
            if ended and not mark and kinds.begins_sentence(token):
                current, ended = current + 1, False
            numbers[i, place] = current
            ended = mark and (ended or word not in ABBREVIATIONS)
            word = kinds.plain[token] if kinds.starts[token] else word + kinds.plain[token]
    return numbers


@dataclass(frozen=True)
class SplitTexts:
    """The sentences of a batch as texts of their own."""

    input_ids: Tensor  # (N, T'), special tokens around each
    attention_mask: Tensor  # (N, T') bool
    mask: Tensor  # (B, K) bool, the sentences that a text has; N of them

    @classmethod
    def of(
        cls, ids: Tensor, mask: Tensor, kinds: TokenKinds, around: tuple[list[int], list[int]], count: int, pad_id: int
    ) -> SplitTexts:
        """At most `count` sentences of each text (B, T), the last of which holds all the rest; a text without any token
        has one empty sentence. around: special tokens before and after a text."""
        numbers = sentence_numbers(ids, mask, kinds).clamp(max=count - 1)
        rows, there = [], torch.zeros(len(ids), count, dtype=torch.bool)
        for i, (row, number) in enumerate(zip(ids.cpu(), numbers, strict=True)):
            found = max(int(number.max()) + 1, 1)
            there[i, :found] = True
            rows += [[*around[0], *row[number == k].tolist(), *around[1]] or [pad_id] for k in range(found)]
        longest = max(len(row) for row in rows)
        padded = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        valid = torch.arange(longest) < lengths[:, None]
        return cls(padded.to(ids.device), valid.to(ids.device), there.to(ids.device))


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]

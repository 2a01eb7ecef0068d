"""Texts with blanks: their tokens for a model, and the filled text.

___ (three or more underscores) and [blank] are one token, [blank:3] three. The given text stands in the result as it
was typed, character by character; only the tokens of blanks come from the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latent_models.tokenizers.special_ids import end_id
from utils.errors import UserError

BLANK = re.compile(r"_{3,}|\[blank(?::(\d{1,3}))?\]")


@dataclass(frozen=True)
class BlankText:
    """A text with n blanks. A blank may hold several tokens; blanks with nothing between them are one."""

    pieces: list[str]  # (n + 1,) the given text around the blanks, as typed
    ids: list[int]  # (T,) token ids with special tokens; `filler` at the blanks
    known: list[bool]  # (T,) False at the blanks
    blanks: list[range]  # (n,) positions of each blank
    source_length: int = 0  # tokens of the source before the text, which are the first of ids

    def behind(self, source: list[int]) -> BlankText:
        """The text behind the token ids of its source, all of them known."""
        n = len(source)
        blanks = [range(blank.start + n, blank.stop + n) for blank in self.blanks]
        return BlankText(self.pieces, source + self.ids, [True] * n + self.known, blanks, n)

    def splice(self, tokenizer: Any, ids: Sequence[int]) -> str:
        """The text whose blanks hold the words of ids (T,) at their positions; all else as typed."""
        parts = [self.pieces[0]]
        for positions, piece in zip(self.blanks, self.pieces[1:], strict=True):
            parts += [_words(tokenizer, ids, positions), piece]
        return "".join(parts)


def _words(tokenizer: Any, ids: Sequence[int], positions: range) -> str:
    """The words at some positions, spelled as behind the token before them: "##ing" and "ing" are one there."""

    def spell(tokens: Sequence[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    filled = list(ids[positions.start : positions.stop])
    before = list(ids[max(positions.start - 1, 0) : positions.start])
    context, alone = spell(before).rstrip(), spell(filled).strip()
    both = spell([*before, *filled])
    behind = both[len(context) :].strip() if context and both.startswith(context) else ""
    return behind or alone


def parse_blanks(tokenizer: Any, text: str, max_length: int, filler: int) -> BlankText:
    """The tokens of a text with blanks. max_length: tokens that the run allows. filler: token id to put at the blanks.

    UserError for a text without blanks, and for one that is too long.
    """
    pieces: list[str] = []
    counts: list[int] = []
    position = 0
    for blank in BLANK.finditer(text):
        count = int(blank[1] or 1)
        if count == 0:
            raise UserError(f"{text[:40]!r}: {blank[0]} has no tokens to fill: write [blank:1] or more")
        if counts and blank.start() == position:
            counts[-1] += count
        else:
            pieces.append(text[position : blank.start()])
            counts.append(count)
        position = blank.end()
    if not counts:
        raise UserError(f"{text[:40]!r} has no blank: write ___ for one token, or [blank:3] for three")
    pieces.append(text[position:])

    before, after = _special_ends(tokenizer)
    ids, known, blanks = list(before), [True] * len(before), []
    for piece, count in zip(pieces, [*counts, 0], strict=True):
        # a blank stands where a word begins: the space before it is part of its first token
        tokens = _tokenize(tokenizer, piece.rstrip() if count else piece)
        ids, known = ids + tokens, known + [True] * len(tokens)
        blanks += [range(len(ids), len(ids) + count)] if count else []
        ids, known = ids + [filler] * count, known + [False] * count
    ids, known = ids + after, known + [True] * len(after)
    if len(ids) > max_length:
        raise UserError(f"{text[:40]!r} has {len(ids)} tokens, and this run allows {max_length}: shorten it")
    return BlankText(pieces, ids, known, blanks)


def unknown_words(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The words of given texts that a tokenizer maps to its unknown token, in order, each once."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    words = dict.fromkeys(word for text in texts for word in BLANK.sub(" ", text).split())
    return [word for word in words if unknown in _tokenize(tokenizer, word)]


def _tokenize(tokenizer: Any, piece: str) -> list[int]:
    return tokenizer(piece, add_special_tokens=False)["input_ids"] if piece.strip() else []


def _special_ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the special tokens before and after the tokens of a text; the end token if there are none after it."""
    empty, some = tokenizer("")["input_ids"], tokenizer("a")["input_ids"]
    first = next((i for i, (x, y) in enumerate(zip(empty, some, strict=False)) if x != y), len(empty))
    end = end_id(tokenizer)
    return empty[:first], empty[first:] or ([] if end is None else [end])

"""What a tokenizer makes of texts: encode, decode, compare.

A model can only produce texts in the spelling of its tokenizer, which may lower the case, drop line ends, marks or
words that it does not know. Where it changes texts, samples and real texts are comparable in its spelling alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.terminal import single_line

MAX_MEASURED = 2000  # texts of a split, evenly spaced: a second at most
_CHUNK = 10_000  # texts that are encoded at once
_SHOWN = 160  # characters of a text that are shown


@dataclass(frozen=True)
class RoundTrip:
    """What encoding and decoding leaves of some texts; blanks around a text do not count."""

    num_texts: int  # texts that were measured
    num_unchanged: int  # texts that come back character for character
    num_unknown: int = 0  # texts with a token that is unknown to the tokenizer
    num_special: int = 0  # texts that spell a special token, which the tokenizer takes for that token
    first_change: tuple[str, str] | None = None  # the first text that changes, and what it becomes
    first_row: int | None = None  # its row among all texts, from 0
    first_special_row: int | None = None  # row of the first text that counts in num_special, from 0

    @property
    def share(self) -> float:
        """Share of the texts that come back unchanged, in [0, 1]; 1 without texts."""
        return self.num_unchanged / self.num_texts if self.num_texts else 1.0

    @property
    def is_exact(self) -> bool:
        return self.num_unchanged == self.num_texts

    def as_dict(self) -> dict[str, Any]:
        """The figures for a file."""
        before, after = self.first_change or (None, None)
        return {
            "measured": self.num_texts, "unchanged": self.share, "unknown_texts": self.num_unknown,
            "special_texts": self.num_special, "first_changed_row": self.first_row,
            "first_special_row": self.first_special_row, "before": before, "after": after,
        }  # fmt: skip


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without a start and an end. A special token that a text spells is plain text."""
    if not len(texts):
        return []
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, truncation=False, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip


def respell(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The texts in the spelling of the tokenizer: encoded and decoded as samples are, without blanks around them."""
    return [text for _, part in _encoded(tokenizer, texts) for text in _decode(tokenizer, part)]


def round_trip(tokenizer: Any, texts: Sequence[str], max_texts: int | None = MAX_MEASURED) -> RoundTrip:
    """Encode and decode texts, and count those that come back unchanged.

    max_texts: at most so many of the texts, evenly spaced; None: all.
    """
    step = 1 if max_texts is None else max(1, -(-len(texts) // max_texts))
    some = texts[::step]
    unknown = tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids) - {unknown}
    changed: list[tuple[int, str]] = []  # row and new spelling
    spelled: list[int] = []
    num_unknown = 0
    for start, rows in _encoded(tokenizer, some):
        num_unknown += sum(unknown in row for row in rows) if unknown is not None else 0
        spelled += [i for i, row in enumerate(rows, start) if not special.isdisjoint(row)]
        after = _decode(tokenizer, rows)
        changed += [(i, text) for i, text in enumerate(after, start) if text != some[i].strip()]
    first = changed[0] if changed else None
    return RoundTrip(
        num_texts=len(some),
        num_unchanged=len(some) - len(changed),
        num_unknown=num_unknown,
        num_special=len(spelled),
        first_change=None if first is None else (some[first[0]], first[1]),
        first_row=None if first is None else first[0] * step,
        first_special_row=spelled[0] * step if spelled else None,
    )


def show_change(before: str, after: str, width: int = _SHOWN) -> list[str]:
    """A text before and after.

    Where they look alike on one line (line ends, unusual blanks, composed letters), they are shown with escapes. Long
    texts are shown from shortly before their first difference.
    """
    start = 0
    if max(len(before), len(after)) > width:
        other = (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        start = max(0, next(other, min(len(before), len(after))) - width // 4)
    shown = [("..." if start else "") + text[start : start + width] for text in (before, after)]
    if len({_as_printed(text) for text in shown}) == 1 or any(len(text.splitlines()) > 1 for text in shown):
        shown = [ascii(text)[1:-1] for text in shown]
    return [f"  before: {single_line(shown[0])}", f"  after:  {single_line(shown[1]) or '(empty)'}"]


def format_round_trips(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines about the texts of some splits: the share that comes back, the first text that does not, special tokens.

    results: RoundTrip.as_dict() by the name of a split, as in "train" or "sources of train".
    """
    shares = ", ".join(f"{name} {_percent(found['unchanged'])}" for name, found in results.items())
    lines = [f"the tokenizer brings back unchanged: {shares} (of at most {MAX_MEASURED:,} texts of a split)"]
    changed = [(name, found) for name, found in results.items() if found["unchanged"] < 1]
    if changed:
        name, found = changed[0]
        row = found["first_changed_row"] + 1
        lines.append(f"first text of {name} that changes (number {row:,}):")
        lines += show_change(found["before"], found["after"])
    for name, found in results.items():
        if found["special_texts"]:
            lines.append(
                f"warning: {_percent(found['special_texts'] / found['measured'])} of the texts of {name} spell a "
                "special token, which the tokenizer cannot tell from that token (first: number "
                f"{found['first_special_row'] + 1:,}): spell it otherwise in the file"
            )
    return lines


def _percent(share: float) -> str:
    """A share in per cent, of which only 1 is 100 % and only 0 is 0 %."""
    nearest = min(max(share, 0.0001), 0.9999) if 0 < share < 1 else share
    return f"{100 * nearest:.4g} %"


def _as_printed(text: str) -> str:
    """A text in which spellings that look alike are equal: blanks, invisible characters, composed letters."""
    kept = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return " ".join(kept.split())


def _encoded(tokenizer: Any, texts: Sequence[str]) -> Iterator[tuple[int, list[list[int]]]]:
    """Yield (row of the first text, token ids) for chunks of the texts."""
    for start in range(0, len(texts), _CHUNK):
        yield start, encode(tokenizer, texts[start : start + _CHUNK])


def _decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    """As the latent spaces decode samples."""
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]

"""An n-gram model of words with interpolated Kneser-Ney smoothing: the floor of a comparison of systems.

It has the local statistics of its training texts and nothing beyond n words. Kneser and Ney 1995, in the interpolated
form of Chen and Goodman 1999, section 3 (one discount for each order, n1 / (n1 + 2 n2)).
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from utils.errors import UserError

START, END = "<s>", "</s>"  # no words: split at blanks, a text cannot contain both a blank and one of them as a whole
MAX_WORDS = 200  # of a sampled text
Context = tuple[str, ...]


@dataclass(frozen=True)
class _Followers:
    """The words after one context, with their discounted counts."""

    words: list[str]
    cumulated: list[float]  # of the discounted counts
    total: float  # of the counts before the discount

    def draw(self, rng: random.Random) -> str | None:
        """A word, or None for one of a shorter context."""
        at = rng.random() * self.total
        return self.words[bisect_right(self.cumulated, at)] if at < self.cumulated[-1] else None


class NgramLM:
    """P(word | the order - 1 words before it), split at blanks."""

    def __init__(self, order: int, tables: list[dict[Context, _Followers]]) -> None:
        """tables: followers of contexts of 0, 1, ..., order - 1 words."""
        self.order, self._tables = order, tables

    @classmethod
    def fit(cls, texts: Sequence[str], order: int = 3) -> NgramLM:
        """Count the n-grams of texts. Raises UserError if there is no word in them."""
        counts: list[dict[Context, Counter[str]]] = [defaultdict(Counter) for _ in range(order)]
        for text in texts:
            words = [START] * (order - 1) + text.split() + [END]
            for at in range(order - 1, len(words)):
                counts[-1][tuple(words[at - order + 1 : at])][words[at]] += 1
        if not any(len(context) and set(words) != {END} for context, words in counts[-1].items()):
            raise UserError("an n-gram model needs texts with words: check the training texts")
        for size in range(order - 2, -1, -1):  # of a shorter context counts how many words stand before it
            for context, followers in counts[size + 1].items():
                for word in followers:
                    counts[size][context[1:]][word] += 1
        return cls(order, [_discounted(table, whole=size == 0) for size, table in enumerate(counts)])

    def sample(self, n: int, seed: int) -> list[str]:
        """n texts; text i depends on seed and i alone."""
        return [self._text(random.Random(f"{seed}, n-gram text {i}")) for i in range(n)]

    def probability(self, word: str, context: Sequence[str]) -> float:
        """P(word | context): the interpolated probability. context: at least order - 1 words, START before a text."""
        value = 0.0
        for size, table in enumerate(self._tables):
            followers = table.get(tuple(context[len(context) - size :]))
            if followers is None:
                continue
            rest = 1 - followers.cumulated[-1] / followers.total
            at = followers.words.index(word) if word in followers.words else None
            own = 0.0
            if at is not None:
                own = followers.cumulated[at] - (followers.cumulated[at - 1] if at else 0.0)
            value = own / followers.total + rest * value
        return value

    def _text(self, rng: random.Random) -> str:
        words = [START] * (self.order - 1)
        while len(words) < self.order - 1 + MAX_WORDS:
            word = self._next(words, rng)
            if word == END:
                break
            words.append(word)
        return " ".join(words[self.order - 1 :])

    def _next(self, words: list[str], rng: random.Random) -> str:
        """Draw from the longest context; with its discounted mass from the next shorter one, and so on."""
        for size in range(self.order - 1, -1, -1):
            followers = self._tables[size].get(tuple(words[len(words) - size :]))
            word = None if followers is None else followers.draw(rng)
            if word is not None:
                return word
        raise AssertionError("the empty context has no discount")


def _discounted(table: dict[Context, Counter[str]], *, whole: bool) -> dict[Context, _Followers]:
    """whole: no discount, for the empty context, to which nothing shorter follows."""
    times = Counter(count for followers in table.values() for count in followers.values())
    once, twice = times[1], times[2]
    discount = 0.0 if whole or not once else once / (once + 2 * twice)
    discount = min(discount, 0.95)  # where no n-gram comes twice, something of the counts has to stay
    return {
        context: _Followers(
            list(followers), list(accumulate(count - discount for count in followers.values())), followers.total()
        )
        for context, followers in table.items()
    }

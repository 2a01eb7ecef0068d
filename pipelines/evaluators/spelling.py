"""The spelling in which an evaluation compares texts.

Samples have the spelling of the run's tokenizer. Where it changes texts, as a vocabulary in lower case does, real texts
are brought into this spelling, too: references, training texts, and what a scorer or a classifier is trained on.
Otherwise the difference of two spellings would be measured, and copies of training texts would not be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dataset_utils.corpus import Corpus
from dataset_utils.round_trip import RoundTrip, format_round_trips, respell, round_trip
from dataset_utils.splits import Split
from latent_models.spaces.base import LatentSpace


@dataclass(frozen=True)
class Spelling:
    """What the run's tokenizer makes of texts, measured on each split."""

    tokenizer: Any
    measured: Mapping[str, RoundTrip]

    @classmethod
    def of(cls, tokenizer: Any, texts: Mapping[str, Sequence[str]]) -> Spelling:
        """Measure some texts of every split."""
        return cls(tokenizer, {name: round_trip(tokenizer, some) for name, some in texts.items()})

    @property
    def is_raw(self) -> bool:
        """True if the tokenizer brings all measured texts back, so that no text is touched."""
        return all(found.is_exact for found in self.measured.values())

    def respell(self, texts: list[str]) -> list[str]:
        return texts if self.is_raw else respell(self.tokenizer, texts)

    def metadata(self) -> dict[str, Any]:
        """Entries of the protocol: the spelling of all texts, and the share of each split that had it already."""
        return {
            "spelling": "raw" if self.is_raw else "tokenizer",
            "unchanged_by_tokenizer": {name: found.share for name, found in self.measured.items()},
            "measured_round_trips": {name: found.num_texts for name, found in self.measured.items()},
        }

    def lines(self) -> list[str]:
        """What was measured, for the log."""
        if not self.measured:
            return []
        lines = format_round_trips({name: found.as_dict() for name, found in self.measured.items()})
        if not self.is_raw:
            lines.append("real texts are compared with samples in the spelling of the tokenizer")
        return lines


def respelled(corpus: Corpus, tokenizer: Any) -> tuple[Corpus, Spelling]:
    """Return the corpus with its texts in the spelling of the tokenizer; sources, which a model reads, stay.

    tokenizer: None for a space without one, whose texts stay as they are.
    """
    if tokenizer is None:
        return corpus, Spelling(None, {})
    spelling = Spelling.of(tokenizer, {name: split.texts for name, split in corpus.splits.items() if split.has_texts})
    if spelling.is_raw:
        return corpus, spelling
    splits = {name: _respelled(split, spelling) for name, split in corpus.splits.items()}
    return replace(corpus, splits=splits), spelling


def _respelled(split: Split, spelling: Spelling) -> Split:
    return replace(split, texts=spelling.respell(split.texts))


def tokenizer_of(space: LatentSpace) -> Any:
    """The tokenizer that decodes the texts of a space, or None."""
    writer = getattr(space, "writer_tokenizer", None)
    return writer if writer is not None else getattr(getattr(space, "language_model", space), "tokenizer", None)

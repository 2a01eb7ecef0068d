"""What a loaded corpus is: splits of texts, with labels or sources where it has them. Knows no file, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from utils.errors import UserError

if TYPE_CHECKING:
    from dataset_utils.catalog import DatasetSpec

SPLITS = ("train", "valid", "test")


@dataclass
class Split:
    """Texts of one split; labels and sources, where there are any, stand beside them row by row."""

    texts: list[str]
    labels: list[int] | None = None  # 0 .. num_classes - 1
    sources: list[str] | None = None  # what a text depends on: a document, a question, a sentence to translate

    def __post_init__(self) -> None:
        for name, column in (("labels", self.labels), ("sources", self.sources)):
            assert column is None or len(column) == len(self.texts), f"{len(column)} {name}, {len(self.texts)} texts"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int]) -> Split:
        """The split of these rows, in this order."""
        return Split(
            [self.texts[i] for i in rows],
            None if self.labels is None else [self.labels[i] for i in rows],
            None if self.sources is None else [self.sources[i] for i in rows],
        )

    def all_texts(self) -> list[str]:
        """Texts and sources: what a language model or a tokenizer of this corpus should have seen."""
        return self.texts + (self.sources or [])


@dataclass
class Corpus:
    """A corpus by split, the row of the registry that it came from, and what was done to it, said in `notes`."""

    name: str
    splits: dict[str, Split]  # train, valid, test
    spec: DatasetSpec
    notes: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """0 where there are no labels."""
        return len(self.class_names)

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def valid(self) -> Split:
        return self.splits["valid"]

    @property
    def test(self) -> Split:
        return self.splits["test"]

    def need_classes(self, flag: str = "--class_conditional") -> None:
        """UserError unless the training texts are of two classes or more."""
        if not self.num_classes:
            raise UserError(
                f"{flag} needs labels, and {self.name} has none: leave it out, name another corpus, or say with "
                "--label_column which column holds them"
            )
        there = set(self.train.labels or ())
        if len(there) < 2:
            only = ", ".join(self.class_names[i] for i in there)
            raise UserError(
                f"{flag} needs two classes or more, and the training texts of {self.name} are all of one ({only}): "
                "leave it out, or name another --label_column"
            )

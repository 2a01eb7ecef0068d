"""What a loaded corpus is: its splits, and the row of the registry that it came from. Knows no file, no tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataset_utils.catalog import DatasetSpec
from dataset_utils.splits import Split
from utils.errors import UserError


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

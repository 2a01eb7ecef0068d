"""A loaded corpus: its splits and its row of the catalog."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataset_utils.catalog import DatasetSpec
from dataset_utils.splits import Split
from utils.errors import UserError


@dataclass
class Corpus:
    """Splits by name, the row of the catalog, and `notes`: one line for each thing that was done to the rows."""

    name: str
    splits: dict[str, Split]  # train, valid, test
    spec: DatasetSpec
    notes: list[str] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    label_values: tuple[str, ...] = ()  # of each class: its label in the files, which may be an index
    files: dict[str, str] = field(default_factory=dict)  # split -> file or table of the hub, unless it is cut
    columns: dict[str, str] = field(default_factory=dict)  # source, text, label -> column, where the corpus has it
    unused_columns: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """0 for a corpus without labels."""
        return len(self.class_names)

    @property
    def in_catalog(self) -> bool:
        """Whether the corpus is one of dataset_utils/catalog, and not the user's own files or a hub id."""
        return bool(self.spec.folders)

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def valid(self) -> Split:
        return self.splits["valid"]

    @property
    def test(self) -> Split:
        return self.splits["test"]

    def require_classes(self, flag: str = "--class_conditional") -> None:
        """UserError unless the training texts have two classes or more. flag: what needs them, for the message."""
        if not self.num_classes:
            raise UserError(
                f"{flag} needs labels, but {self.name} has none: leave it out, name another corpus, or name the column "
                "of the labels with --label_column"
            )
        present = set(self.train.labels or ())
        if len(present) < 2:
            only = ", ".join(self.class_names[i] for i in present)
            raise UserError(
                f"{flag} needs two classes or more, but all training texts of {self.name} have the same one ({only}): "
                "leave it out, or name another --label_column"
            )

"""What precedes the texts of a language model without latents: sources of pairs, names of classes, both, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dataset_utils.corpus import Corpus
from dataset_utils.splits import Split

BETWEEN = " | "  # of a class and a source


@dataclass(frozen=True)
class Prompts:
    """How the prompts of a run are written."""

    class_names: tuple[str, ...] = ()  # empty for a run without classes
    with_sources: bool = False

    @classmethod
    def of(cls, corpus: Corpus, class_conditional: bool, ignore_sources: bool) -> Prompts:
        """The prompts of a corpus. UserError if it lacks the classes that the flags ask for."""
        if class_conditional:
            corpus.require_classes()
        names = tuple(corpus.class_names) if class_conditional else ()
        return cls(names, corpus.train.sources is not None and not ignore_sources)

    def of_split(self, split: Split) -> list[str] | None:
        """The prompt of each row of a split; None for a run without prompts."""
        return self.texts(split.sources if self.with_sources else None, split.labels if self.class_names else None)

    def texts(self, sources: Sequence[str] | None, classes: Sequence[int] | None) -> list[str] | None:
        """Prompts of sources, of classes by number, or of both; None for neither."""
        names = None if classes is None or not self.class_names else [self.class_names[c] for c in classes]
        if sources is None or names is None:
            return names if sources is None else list(sources)
        return [name + BETWEEN + source for name, source in zip(names, sources, strict=True)]

"""Classes to sample: one class by number or name, each class, the training frequencies, or no class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.sampling.generator import SampleOutput
from pipelines.sampling.sampler_call import ConditionFn
from utils.errors import UserError, did_you_mean
from utils.records import Condition

PRIOR, NULL, ALL = "prior", "unconditional", "all"  # not "null": a flag of that value would be unset
NO_LABEL = -2  # label of an empty text; no classifier returns it


@dataclass(frozen=True)
class ClassSelection:
    """The samples that an evaluation draws."""

    joint: str | None  # one sample over all classes: PRIOR or NULL; None: not drawn
    per_class: tuple[int, ...]  # classes for which a separate sample is drawn


def select_classes(wanted: str | None, names: Sequence[str], null_prob: float, *, training: bool) -> ClassSelection:
    """The classes that --class_id names. null_prob: --class_unconditional_prob of training.

    Unset, it stands for the frequencies of training and, of a trained run, a sample of each class too. UserError for an
    unknown class, and for the null class of a network that was never trained with it.
    """
    if wanted is None:
        return ClassSelection(PRIOR, () if training else tuple(range(len(names))))
    if wanted == ALL:
        return ClassSelection(None, tuple(range(len(names))))
    if wanted == PRIOR:
        return ClassSelection(PRIOR, ())
    if wanted == NULL:
        if null_prob == 0:
            raise UserError(
                f"--class_id {NULL}: this network was trained without the null class (--class_unconditional_prob 0): "
                f"give a class, {ALL} or {PRIOR}"
            )
        return ClassSelection(NULL, ())
    return ClassSelection(None, (class_index(wanted, names, "--class_id"),))


def class_index(wanted: int | str, names: Sequence[str], what: str = "class") -> int:
    """The number of a class given by name or number; a name takes precedence. UserError for an unknown class."""
    text = str(wanted).strip()
    if isinstance(wanted, str) and text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    if not names:
        raise UserError(f"{what} {wanted}: this run was trained without classes")
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    raise UserError(f"{what} {wanted} is not a class{did_you_mean(text, names)}: give one of {known}")


def class_conditions(labels: Callable[[int, torch.Generator], Tensor]) -> ConditionFn:
    """Conditions of class ids alone. labels: (n, generator) -> class ids (n,)."""
    return lambda batch_index, n, generator: Condition.of(class_id=labels(n, generator))


def one_class(c: int) -> ConditionFn:
    """Class c for every text."""
    return class_conditions(lambda n, generator: torch.full((n,), c))


def per_text_classes(classes: Sequence[int]) -> ConditionFn:
    """classes[i] for text i, counted over all batches; the list is repeated if there are more texts."""
    table = torch.tensor(classes)

    def conditions(batch_index: int, n: int, generator: torch.Generator) -> Condition:
        return Condition.of(class_id=table[(batch_index * n + torch.arange(n)) % len(table)])

    return conditions


@dataclass
class TrainingClassPrior:
    """Conditions whose classes are drawn with the frequencies of `labels`; records the classes of each batch."""

    labels: Tensor  # (texts,) int64, of the training split
    drawn: dict[int, list[int]] = field(default_factory=dict)  # batch index -> class of each row

    def __call__(self, batch_index: int, n: int, generator: torch.Generator) -> Condition:
        classes = self.labels[torch.randint(len(self.labels), (n,), generator=generator)]
        self.drawn[batch_index] = classes.tolist()
        return Condition.of(class_id=classes)

    def classes_of(self, sampled: SampleOutput, strategy: str) -> list[int]:
        """The class that each text was conditioned on; NO_LABEL for empty texts."""
        origins = sampled.origins[strategy]
        return [NO_LABEL if origin is None else self.drawn[origin[0]][origin[1]] for origin in origins]

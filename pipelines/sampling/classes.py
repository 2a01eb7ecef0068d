"""Classes to sample: one class by number or name, each class, the training frequencies, or no class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from dataset_utils.labels import canonical_label, is_number
from pipelines.sampling.generator import SampleOutput
from pipelines.sampling.sampler_call import ConditionFn
from utils.errors import UserError, did_you_mean
from utils.records import Condition
from utils.terminal import single_line

PRIOR, NULL, ALL = "prior", "unconditional", "all"  # not "null": a flag of that value would be unset
NO_LABEL = -2  # label of an empty text; no classifier returns it
_MOST_LISTED = 20  # classes in a message


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


def class_index(wanted: Any, names: Sequence[str], what: str = "class") -> int:
    """The index of a class. UserError, which lists the classes, for an unknown one.

    wanted: the name of a class, in any form that `canonical_label` takes for it: 1, 1.0 and "1" are one. Where no name
    is a number, a number is the index of a class.
    """
    try:
        text = canonical_label(wanted)
    except ValueError as error:
        raise UserError(f"{what} {_shown(wanted)} is not a class, since {error}: {_list_classes(names)}") from None
    canonical = canonical_names(names)  # runs of earlier releases have other spellings
    if text in canonical:
        return canonical.index(text)
    if text.isdecimal() and not any(map(is_number, canonical)) and Decimal(text) < len(names):
        return int(text)
    raise UserError(f"{what} {_shown(text)} is not a class{did_you_mean(text, names)}: {_list_classes(names)}")


def canonical_names(names: Sequence[str]) -> list[str]:
    """The names of classes in their canonical spelling; what is no label stays as it is."""
    canonical = []
    for name in names:
        try:
            canonical.append(canonical_label(name))
        except ValueError:
            canonical.append(name)
    return canonical


def _list_classes(names: Sequence[str]) -> str:
    if not names:
        return "this run was trained without classes, so leave it out"
    some = [single_line(name) for name in names[:_MOST_LISTED]]
    if not any(map(is_number, canonical_names(names))):
        some = [f"{i} ({name})" for i, name in enumerate(some)]
    more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
    return f"give one of {', '.join(some)}{more}"


def _shown(wanted: Any) -> str:
    text = single_line(str(wanted)) if isinstance(wanted, str | int | float) else repr(wanted)
    return text if len(text) <= 40 else text[:37] + "..."


def class_conditions(labels: Callable[[int, torch.Generator], Tensor]) -> ConditionFn:
    """Conditions of class ids alone. labels: (n, generator) -> class ids (n,)."""
    return lambda batch_index, n, generator: Condition.of(class_id=labels(n, generator))


def one_class(c: int) -> ConditionFn:
    """Class c for every text."""
    return class_conditions(lambda n, generator: torch.full((n,), c))


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

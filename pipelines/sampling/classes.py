"""Which classes are sampled: one by number or name, every one, drawn as in training, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dataset_utils.columns import nearest
from pipelines.sampling.generate import Conditions, Sampled, of_labels
from utils.errors import UserError
from utils.records import Condition

PRIOR, NULL, ALL = "prior", "unconditional", "all"  # a flag of the value "null" would be unset
NOWHERE = -2  # label of a text that could not be had: no judge gives it


@dataclass(frozen=True)
class Choice:
    """What an evaluation samples. together: PRIOR, NULL, or None for no sample of all classes together."""

    together: str | None
    apart: tuple[int, ...]  # classes sampled one by one


def choose(wanted: str | None, names: Sequence[str], null_prob: float, *, training: bool) -> Choice:
    """What --class_id asks for. null_prob: --class_unconditional_prob of training.

    Unset: classes as in training, and, of a trained run, every class by itself. UserError for a class that is not
    there, and for the null class where it was never learned.
    """
    if wanted is None:
        return Choice(PRIOR, () if training else tuple(range(len(names))))
    if wanted == ALL:
        return Choice(None, tuple(range(len(names))))
    if wanted == PRIOR:
        return Choice(PRIOR, ())
    if wanted == NULL:
        if null_prob == 0:
            raise UserError(
                f"--class_id {NULL}: this network never learned to do without a class (--class_unconditional_prob 0): "
                f"give a class, {ALL} or {PRIOR}"
            )
        return Choice(NULL, ())
    return Choice(None, (class_number(wanted, names, "--class_id"),))


def class_number(wanted: int | str, names: Sequence[str], what: str = "class") -> int:
    """The number of a class given by name or number; a name goes before a number. UserError for any other."""
    text = str(wanted).strip()
    if isinstance(wanted, str) and text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    if not names:
        raise UserError(f"{what} {wanted}: this run was trained without classes")
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
    raise UserError(f"{what} {wanted} is not a class{nearest(text, names)}: give one of {known}")


def one_class(c: int) -> Conditions:
    """Every text of class c."""
    return of_labels(lambda n, generator: torch.full((n,), c))


def listed(classes: Sequence[int]) -> Conditions:
    """Text i of all blocks of class classes[i], from the start again where they are more."""
    every = torch.tensor(classes)
    return lambda block, n, generator: Condition.of(class_id=every[(block * n + torch.arange(n)) % len(every)])


@dataclass
class Drawn:
    """Conditions with classes drawn as frequent as in `labels`; remembers what each text of each block was told."""

    labels: Tensor  # (texts,) int64, of the training split
    told: dict[int, list[int]] = field(default_factory=dict)

    def __call__(self, block: int, n: int, generator: torch.Generator) -> Condition:
        classes = self.labels[torch.randint(len(self.labels), (n,), generator=generator)]
        self.told[block] = classes.tolist()
        return Condition.of(class_id=classes)

    def of(self, sampled: Sampled, strategy: str) -> list[int]:
        """The class that each text was asked for; NOWHERE for those that could not be had."""
        return [NOWHERE if place is None else self.told[place[0]][place[1]] for place in sampled.places[strategy]]

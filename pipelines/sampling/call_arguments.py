"""Checks of the arguments of the pipeline's methods: seeds, classes, guidance, decoding. One line for what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dataset_utils.labels import canonical_label
from diffusion.samplers import SAMPLERS
from latent_models.generation.decoding import DECODING, one_strategy
from pipelines.sampling.arguments import check_number, check_seed
from pipelines.sampling.classes import class_index
from utils.cli.flags import shown
from utils.errors import UserError, did_you_mean

OUTPUT_TYPES = ("text", "latent")
DEFAULT_SEED = 42
# Samplers under the names that diffusers gives their classes.
DIFFUSERS_NAMES = {
    "DDPMScheduler": "ddpm",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpmpp",
    "HeunDiscreteScheduler": "heun",
}


def seed_of(value: Any, what: str = "seed") -> int:
    """A seed: a whole number, or one that a torch.Generator draws, so that its next use gives other texts."""
    if isinstance(value, torch.Generator):
        return int(torch.randint(0, 2**62, (), generator=value, device=value.device))
    if isinstance(value, list | tuple) and any(isinstance(one, torch.Generator) for one in value):
        raise UserError(f"{what} is a list: give one torch.Generator or whole number, from which all texts are drawn")
    return check_seed(value, what)


def seed_argument(generator: Any, seed: Any) -> tuple[Any, str]:
    """The value of the one of two arguments that is given, and its name; the default seed without both."""
    name, value = one_of({"generator": generator, "seed": seed})
    return (DEFAULT_SEED if value is None else value), name


def one_of(names: dict[str, Any]) -> tuple[str, Any]:
    """Name and value of the only argument that is not None; the first one if all are. UserError if two are given."""
    given = [(name, value) for name, value in names.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{given[0][0]} and {given[1][0]} mean the same: give one of them")
    return given[0] if given else next(iter(names.items()))


def strategy_of(decoding: Any, default: str) -> str:
    """A decoding strategy by name. None: the default."""
    if decoding is not None and not isinstance(decoding, str):
        raise UserError(f"decoding is {shown(decoding)}: give one of {', '.join(DECODING)}")
    return one_strategy(decoding or default)


def sampler_of(name: Any) -> str:
    """The name of a sampler, given it or the name of diffusers."""
    found = DIFFUSERS_NAMES.get(name, name) if isinstance(name, str) else None
    if found not in SAMPLERS:
        near = did_you_mean(name, [*SAMPLERS, *DIFFUSERS_NAMES]) if isinstance(name, str) else ""
        raise UserError(f"sampler is {shown(name)}{near}: give one of {', '.join(SAMPLERS)}")
    return found  # type: ignore[return-value]  # a key of SAMPLERS


def output_type_of(name: Any) -> str:
    if name not in OUTPUT_TYPES:
        raise UserError(f"output_type is {shown(name)}: give one of {', '.join(OUTPUT_TYPES)}")
    return name


def find_class(wanted: Any, names: Sequence[str]) -> int:
    """The index of a class, given its name or number."""
    try:
        canonical_label(wanted)
        return class_index(wanted.item() if hasattr(wanted, "item") else wanted, names)  # of NumPy
    except UserError:
        raise
    except ValueError as error:
        known = ", ".join(names) or "none, since this run was trained without classes"
        raise UserError(f"class_id is {shown(wanted)}, and {error}: give one of {known}") from None


def find_classes(wanted: Any, n: int, names: Sequence[str], has_null_class: bool) -> int | list[int] | None:
    """The class of all n texts, or of each; None for no class.

    wanted: a class by name or number, n of them, or None. UserError if the run has no such class, or no null class.
    """
    if wanted is None:
        if not has_null_class:
            raise UserError("this run was trained without a null class: give class_id")
        return None
    scalar = isinstance(wanted, str | bytes | dict | set) or getattr(wanted, "ndim", None) == 0  # of NumPy
    if scalar or not hasattr(wanted, "__len__"):
        return find_class(wanted, names)
    rows = list(wanted)
    if len(rows) != n:
        raise UserError(f"{len(rows)} classes for {n} texts: give one class, or one for each text")
    return [find_class(one, names) for one in rows]


def check_guidance(
    weight: Any,
    name: str,
    *,
    by_class: bool,
    by_source: bool,
    packed: bool,
    with_sources: bool,
    has_null_class: bool,
    has_null_source: bool,
    distilled: float,
) -> float:
    """A weight of classifier-free guidance. UserError if the texts of the call cannot be guided by it.

    name: of the argument. by_class, by_source: the conditions of the texts. packed: their sources stand before them
    in one sequence, and never without. with_sources: whether the run takes sources. has_null_class, has_null_source:
    whether the network was trained without each of them, too.
    distilled: the guidance in a student's weights; 1: none.
    """
    weight = check_number(weight, name)
    if weight == 1:
        return weight
    reason = None
    if not by_class and not by_source:
        reason = f"needs a {'source: give source' if with_sources else 'class: give class_id'} too, or"
        if packed:
            reason = "needs predictions without the source, which is packed into every text here: train with "
            reason += "--seq2seq_unconditional_prob 0.1, or"
    elif distilled != 1:
        reason = f"is too much: this student was distilled with a guidance of {distilled:g}, which is in its weights:"
    elif by_class and not has_null_class:
        reason = "needs a run that was trained with a null class:"
    elif by_source and not has_null_source:
        reason = "needs a run that was trained without sources, too:"
    if reason is not None:
        raise UserError(f"{name} {weight:g} {reason} leave {name} out")
    return weight

"""Logits processors of transformers that depend only on the position, so that many positions can be scored at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitsProcessor,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteria,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

ACTIVE_AT: Mapping[type, Callable[[Any, int], bool]] = {
    # class: (processor, number of tokens so far with the start token) -> whether it changes scores
    ForcedBOSTokenLogitsProcessor: lambda processor, length: length == 1,
    ForcedEOSTokenLogitsProcessor: lambda processor, length: length == processor.max_length - 1,
    InfNanRemoveLogitsProcessor: lambda processor, length: True,
    MinLengthLogitsProcessor: lambda processor, length: length < processor.min_length,
    MinNewTokensLengthLogitsProcessor: lambda processor, length: (
        length - processor.prompt_length_to_skip < processor.min_new_tokens
    ),
    SuppressTokensAtBeginLogitsProcessor: lambda processor, length: length == processor.begin_index,
    SuppressTokensLogitsProcessor: lambda processor, length: True,
}
EOS_CRITERIA = (EosTokenCriteria, MaxLengthCriteria)


def position_only(processors: Sequence[LogitsProcessor], criteria: Sequence[StoppingCriteria]) -> bool:
    """Whether scores and the end of a text depend only on the position and the token there."""
    return all(type(p) in ACTIVE_AT for p in processors) and all(type(c) in EOS_CRITERIA for c in criteria)


def active_processors(processors: Sequence[LogitsProcessor], length: int) -> list[LogitsProcessor]:
    """The processors that change the scores of the token after the first `length` tokens, in order."""
    return [p for p in processors if ACTIVE_AT[type(p)](p, length)]


def end_tokens(criteria: Sequence[StoppingCriteria]) -> list[Tensor]:
    """The end tokens (n,) of each criterion that has some."""
    return [c.eos_token_id for c in criteria if isinstance(c, EosTokenCriteria)]

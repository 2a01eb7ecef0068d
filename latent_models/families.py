"""Families of encoder-decoder language models, one row each, chosen by `model_type` of the configuration.

All differences between families are in these rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from utils.errors import UserError


@dataclass(frozen=True)
class Family:
    """Properties of one family of language models."""

    width: str = "d_model"  # configuration key of the encoder's width
    positions: str | None = None  # configuration key of the longest input; None: relative positions, no limit
    unsafe_dtypes: tuple[torch.dtype, ...] = ()  # autocast dtypes in which its states overflow

    def dim(self, config: Any) -> int:
        """Width of an encoder state."""
        return getattr(config, self.width)

    def max_length(self, config: Any) -> int | None:
        """Longest input in tokens, or None where there is no limit."""
        return getattr(config, self.positions) if self.positions else None


FAMILIES = {
    "bart": Family(positions="max_position_embeddings"),
    "mbart": Family(positions="max_position_embeddings"),
    "t5": Family(unsafe_dtypes=(torch.float16,)),  # its feed-forward layers overflow
    "mt5": Family(unsafe_dtypes=(torch.float16,)),
}


def family_of(config: Any, name: str) -> Family:
    """The row of a configuration; UserError for a family that has none."""
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UserError(
            f"{name} is a {config.model_type!r} model, which is not an encoder-decoder that is supported here: "
            f"give --enc_dec_model a model of type {', '.join(FAMILIES)}"
        ) from None

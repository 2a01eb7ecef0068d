"""Families of encoder-decoder language models as data, chosen by `model_type` of the configuration, never by a name.

What differs between families stands here in one row each; everything else in latent_models asks the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from utils.errors import UserError


@dataclass(frozen=True)
class Family:
    """How to talk to one family of language models."""

    width: str = "d_model"  # configuration key of the encoder's width
    positions: str | None = None  # configuration key of the longest input; None: relative positions, no limit
    unsafe_dtypes: tuple[torch.dtype, ...] = ()  # dtypes of autocast in which its states would not stay finite

    def dim(self, config: Any) -> int:
        """Width of an encoder state."""
        return getattr(config, self.width)

    def max_length(self, config: Any) -> int | None:
        """Longest input in tokens, or None where there is no limit."""
        return getattr(config, self.positions) if self.positions else None


FAMILIES = {
    "bart": Family(positions="max_position_embeddings"),
    "mbart": Family(positions="max_position_embeddings"),
    "t5": Family(unsafe_dtypes=(torch.float16,)),  # in its feed-forward
    "mt5": Family(unsafe_dtypes=(torch.float16,)),
}


def family_of(config: Any, name: str) -> Family:
    """The row of a configuration; a family that is not there is refused in one line."""
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UserError(
            f"{name} is a {config.model_type!r} model, which is not an encoder-decoder that is supported here: "
            f"give --enc_dec_model a model of type {', '.join(FAMILIES)}"
        ) from None

"""Flags of the draft model."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


@dataclass
class DraftModelOptions:
    """The network that drafts all tokens of a text at once; see latent_models/speculative/draft_model."""

    draft_model_dim: int | None = flag(
        None, "width, divisible by 32; unset: half the width of the language model", unit="channels", at_least=1
    )
    draft_model_depth: int = flag(2, "blocks of attention and feed-forward", unit="blocks", at_least=1, at_most=1000)

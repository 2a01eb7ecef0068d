"""Held-out texts written out again: from their latents, and by the plain language model beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from latent_models.decoding import DECODING
from latent_models.language_models import LanguageModel
from latent_models.spaces import LatentSpace
from pipelines.tokens import TokenSplit
from utils.progress import Progress
from utils.records import Batch

Decode = Callable[[Batch, str], list[str]]  # (batch, strategy) -> texts


@torch.no_grad()
def reconstruct(
    decode: Decode,
    data: TokenSplit,
    rows: torch.Tensor,
    batch_size: int,
    strategy: str,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    title: str,
    quiet: bool = False,
) -> list[str]:
    """Texts of rows as `decode` writes them, in the order of rows."""
    written: dict[int, str] = {}
    with Progress(title, len(rows), unit="text", quiet=quiet) as bar, autocast():
        for part, batch in data.by_length(batch_size, rows):
            written.update(zip(part.tolist(), decode(batch.to(device), strategy), strict=True))
            bar.advance(len(part))
    return [written[row] for row in rows.tolist()]


def through_latents(space: LatentSpace, max_length: int) -> Decode:
    """Text -> latents -> text."""
    return lambda batch, strategy: space.decode(space.encode(batch), max_length=max_length, **DECODING[strategy])


def through_states(model: LanguageModel, max_length: int) -> Decode:
    """Text -> encoder states -> text: what the language model alone makes of it."""

    def decode(batch: Batch, strategy: str) -> list[str]:
        states = model.encode(batch.input_ids, batch.attention_mask)
        return model.generate(states, batch.attention_mask, max_length=max_length, **DECODING[strategy])

    return decode

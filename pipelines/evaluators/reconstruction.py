"""Held-out texts written out again: from their latents, and by the plain language model beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from latent_models.decoding import DECODING
from latent_models.language_models import LanguageModel
from latent_models.spaces import LatentSpace
from pipelines.data.tokens import TokenSplit
from utils.distributed import Ranks, gather_objects
from utils.preemption import give_way
from utils.progress import Progress
from utils.records import Batch
from utils.seeding import derive

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
    ranks: Ranks | None = None,
) -> list[str]:
    """Texts of rows as `decode` writes them, in the order of rows. ranks: processes that share the batches."""
    ranks = ranks or Ranks(device=device)
    written: dict[int, str] = {}
    with Progress(title, len(rows), unit="text", quiet=quiet) as bar, autocast():
        for i, (part, batch) in enumerate(data.length_sorted_batches(batch_size, rows)):
            give_way()
            if i % ranks.world == ranks.rank:
                # what a sampling strategy draws depends on the batch alone, not on the process
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    torch.manual_seed(derive(0, "reconstruct", strategy, i))
                    texts = decode(batch.to(device), strategy)
                written.update(zip(part.tolist(), texts, strict=True))
            bar.advance(len(part))
        for others in gather_objects(ranks, [written]):
            written = {**written, **others}
    return [written[row] for row in rows.tolist()]


def via_latents(space: LatentSpace, max_length: int) -> Decode:
    """Text -> latents -> text."""
    return lambda batch, strategy: space.decode(space.encode(batch), max_length=max_length, **DECODING[strategy])


def via_encoder(model: LanguageModel, max_length: int) -> Decode:
    """Text -> encoder states -> text: what the language model alone makes of it."""

    def decode(batch: Batch, strategy: str) -> list[str]:
        states = model.encode(batch.input_ids, batch.attention_mask)
        return model.generate(states, batch.attention_mask, max_length=max_length, **DECODING[strategy])

    return decode

"""Reconstruction of held-out texts: from their latents, and by the language model without a bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from latent_models.generation.decoding import DECODING
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from pipelines.data.tokens import TokenSplit
from utils.distributed import DistContext, gather_objects
from utils.preemption import check_interrupt
from utils.progress import ProgressBar
from utils.records import Batch
from utils.seeding import derive_seed

Decode = Callable[[Batch, str], list[str]]  # (batch, strategy) -> texts
Decoding = Mapping[str, Mapping[str, Any]]  # settings by strategy


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
    dist: DistContext | None = None,
) -> list[str]:
    """Decode the texts of `rows` and return them in this order. dist: ranks that share the batches; None: one process.

    title: label of the progress bar.
    """
    dist = dist or DistContext(device=device)
    decoded: dict[int, str] = {}
    with ProgressBar(title, len(rows), unit="text", disable=quiet) as bar, autocast():
        for i, (part, batch) in enumerate(data.length_sorted_batches(batch_size, rows)):
            check_interrupt()
            if i % dist.world_size == dist.rank:
                # the random numbers of a sampling strategy depend on the batch, not on the rank
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    torch.manual_seed(derive_seed(0, "reconstruct", strategy, i))
                    texts = decode(batch.to(device), strategy)
                decoded.update(zip(part.tolist(), texts, strict=True))
            bar.advance(len(part))
        for others in gather_objects(dist, [decoded]):
            decoded = {**decoded, **others}
    return [decoded[row] for row in rows.tolist()]


def via_latents(space: LatentSpace, max_length: int, decoding: Decoding = DECODING) -> Decode:
    """Return a function that encodes texts to latents and decodes these."""
    return lambda batch, strategy: space.decode(space.encode(batch), max_length=max_length, **decoding[strategy])


def via_encoder(model: LanguageModel, max_length: int, decoding: Decoding = DECODING) -> Decode:
    """Return a function that decodes texts from the language model's encoder states, without a bottleneck."""

    def decode(batch: Batch, strategy: str) -> list[str]:
        states = model.encode(batch.input_ids, batch.attention_mask)
        return model.generate(states, batch.attention_mask, max_length=max_length, **decoding[strategy])

    return decode

"""How the sources of pairs reach a sampler: as states that the denoiser attends to, or as a given prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dataset_utils.batching import collate
from dataset_utils.packing import pack_sources
from latent_models.embeddings import EmbeddingSpace
from latent_models.normalisation import Normalised
from latent_models.tokenizers.identity import end_id, separator_id
from pipelines.data.context_encoder import Context
from pipelines.sampling.told import Told
from utils.records import Condition
from utils.seeding import generator

Tell = Callable[[int, int], Told]  # (first, last) -> what these examples are told, a row for each


class Sources(Protocol):
    def tell(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> Tell:
        """seed: of the sampling. classes: (n,) ids on the device, where the run has classes."""

    def facts(self) -> dict[str, Any]:
        """For the protocol of an evaluation."""


class ContextSources:
    """Sources are read by the context encoder."""

    def __init__(
        self, context: Context, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.context, self.device, self.autocast = context, device, autocast

    def tell(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> Tell:
        def told(first: int, last: int) -> Told:
            states, mask = self.context.encode(sources[first:last], self.device, self.autocast)
            return Told(Condition.of(None if classes is None else classes[first:last], states, mask))

        return told

    def facts(self) -> dict[str, Any]:
        return {"context_encoder": self.context.model.name, "max_source_len": self.context.states.length}


class PackedSources:
    """Sources stand before their targets and stay as they are: partial noising (dataset_utils/packing).

    With padding "generated" the target may take all that the source leaves. With "masked" its length is drawn from
    those of training targets whose sources are about as long, one for each source.
    """

    def __init__(self, space: Normalised, device: torch.device, trim: bool) -> None:
        self.space, self.device, self.trim = space, device, trim
        self.embeddings = cast(EmbeddingSpace, space.space)

    def tell(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> Tell:
        space, tokenizer = self.embeddings, self.embeddings.tokenizer
        end, separator = end_id(tokenizer), separator_id(tokenizer)
        assert end is not None and separator is not None, "the space refuses a tokenizer without an end"
        table = pack_sources(
            tokenizer,
            sources,
            space.length,
            end_id=end,
            separator_id=separator,
            trim=self.trim,
        )
        if space.masked:
            assert table.given is not None
            given = torch.from_numpy(table.given)
            drawn = self.space.sample_lengths(len(sources), generator(seed, "target lengths"), given)
            table = replace(table, lengths=np.minimum(table.given + drawn.numpy(), space.length).astype(np.int32))

        def told(first: int, last: int) -> Told:
            batch = collate(table, range(first, last), space.pad_id, space.length).to(self.device)
            latents = self.space.encode(batch)
            anchor = space.anchor(batch, latents)
            assert anchor is not None
            condition = None if classes is None else Condition.of(classes[first:last])
            return Told(condition, anchor, latents.mask, latents.mask & ~anchor.mask)

        return told

    def facts(self) -> dict[str, Any]:
        return {"sources": "packed", "trim_sources": self.trim}

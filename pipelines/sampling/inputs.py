"""Makes the inputs of sampling batches (SampleInputs of pipelines/sampling/sampler_call).

Sources of pairs reach the sampler as states that the denoiser attends to (ContextSources) or as a known prefix
(PackedSources). Texts with blanks become known positions around the blanks (infilling_inputs).
"""

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
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.normalization import NormalizedSpace
from latent_models.tokenizers.special_ids import end_id, separator_id
from pipelines.data.context_encoder import ContextEncoder
from pipelines.sampling.blanks import BlankText
from pipelines.sampling.sampler_call import InputsFn, SampleInputs
from utils.records import Batch, Condition, KnownPositions
from utils.seeding import seeded_generator

# ------------------------------------------------------------------------------------------------ sources of pairs


class Sources(Protocol):
    """How the sources of pairs reach the sampler."""

    def make_inputs(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> InputsFn:
        """seed: seed of the sampling. classes: (n,) class ids on the device, for a class-conditional run."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the sources."""

    @property
    def limit(self) -> tuple[int, int] | None:
        """Longest source in tokens, and how many tokens of a longer one are read; None: a longer one is refused."""

    def metadata(self) -> dict[str, Any]:
        """Entries for the protocol of an evaluation."""


class ContextSources:
    """The context encoder encodes the sources; the denoiser attends to its states."""

    def __init__(
        self, context: ContextEncoder, device: torch.device, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.context, self.device, self.autocast = context, device, autocast

    def make_inputs(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> InputsFn:
        def inputs(first: int, last: int) -> SampleInputs:
            states, mask = self.context.encode(sources[first:last], self.device, self.autocast)
            return SampleInputs(Condition.of(None if classes is None else classes[first:last], states, mask))

        return inputs

    @property
    def tokenizer(self) -> Any:
        return self.context.model.tokenizer

    @property
    def limit(self) -> tuple[int, int]:
        return self.context.states.length, self.context.states.length

    def metadata(self) -> dict[str, Any]:
        return {"context_encoder": self.context.model.name, "max_source_len": self.context.states.length}


class PackedSources:
    """Sources stand before their targets as known positions: partial noising (dataset_utils/packing).

    With padding "generated" the target may fill all positions after the source. With "masked" its length is drawn, one
    for each source, from the lengths of training targets whose sources are about as long.
    """

    def __init__(self, space: NormalizedSpace, device: torch.device, trim: bool) -> None:
        """trim: shorten sources that are too long instead of refusing them (--truncate_sources)."""
        self.space, self.device, self.trim = space, device, trim
        self.embeddings = cast(EmbeddingSpace, space.space)

    def make_inputs(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> InputsFn:
        space, tokenizer = self.embeddings, self.embeddings.tokenizer
        end, separator = end_id(tokenizer), separator_id(tokenizer)
        assert end is not None and separator is not None, "the space refuses a tokenizer without an end"
        table = pack_sources(tokenizer, sources, space.length, end_id=end, separator_id=separator, truncate=self.trim)
        if space.variable_length:
            assert table.prefix_lengths is not None
            known = torch.from_numpy(table.prefix_lengths)
            lengths = self.space.sample_lengths(len(sources), seeded_generator(seed, "target lengths"), known)
            total = np.minimum(table.prefix_lengths + lengths.numpy(), space.length).astype(np.int32)
            table = replace(table, lengths=total)

        def inputs(first: int, last: int) -> SampleInputs:
            batch = collate(table, range(first, last), space.pad_id, space.length).to(self.device)
            latents = self.space.encode(batch)
            known = space.known_positions(batch, latents)
            assert known is not None
            condition = None if classes is None else Condition.of(classes[first:last])
            return SampleInputs(condition, known, latents.mask, latents.mask & ~known.mask)

        return inputs

    @property
    def tokenizer(self) -> Any:
        return self.embeddings.tokenizer

    @property
    def limit(self) -> tuple[int, int] | None:
        longest = self.space.length - 3  # without the end of the source, the separator, and one token of a target
        return (longest + 1, longest // 2 + 1) if self.trim else None

    def metadata(self) -> dict[str, Any]:
        return {"sources": "packed", "truncate_sources": self.trim}


# ------------------------------------------------------------------------------------------------------- infilling


def infilling_inputs(space: NormalizedSpace, texts: Sequence[BlankText], device: torch.device) -> InputsFn:
    """Inputs for filling the blanks of texts in a space of embeddings: all positions but the blanks are known."""
    embeddings = cast(EmbeddingSpace, space.space)

    def padded(values: Sequence[int] | Sequence[bool], fill: int | bool) -> Tensor:
        return torch.tensor([*values, *[fill] * (space.length - len(values))])

    def inputs(first: int, last: int) -> SampleInputs:
        selected = texts[first:last]
        ids = torch.stack([padded(text.ids, embeddings.pad_id) for text in selected])
        text_mask = torch.arange(space.length) < torch.tensor([len(text.ids) for text in selected])[:, None]
        latents = space.encode(Batch(ids, text_mask).to(device))
        # in a space whose padding is generated, the padding is known too: the text keeps its length
        known = torch.stack([padded(text.known, not embeddings.variable_length) for text in selected]).to(device)
        assert latents.mean is not None
        return SampleInputs(None, KnownPositions(latents.mean, known), latents.mask, text_mask.to(device))

    return inputs

"""Makes the inputs of sampling batches (SampleInputs of pipelines/sampling/sampler_call).

Sources of pairs reach the sampler as states that the denoiser attends to (ContextSources) or as a known prefix
(PackedSources). Texts with blanks become known positions around the blanks (infilling_inputs).
"""

from __future__ import annotations

import re
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
from latent_models.tokenizers.special_ids import end_id, separator_id, start_id
from pipelines.data.context_encoder import ContextEncoder
from pipelines.sampling.sampler_call import InputsFn, SampleInputs
from utils.errors import UserError
from utils.records import Batch, Condition, KnownPositions
from utils.seeding import seeded_generator

BLANK = re.compile(r"_{3,}|\[blank(?::(\d{1,3}))?\]")


# ------------------------------------------------------------------------------------------------ sources of pairs


class Sources(Protocol):
    """How the sources of pairs reach the sampler."""

    def make_inputs(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> InputsFn:
        """seed: seed of the sampling. classes: (n,) class ids on the device, for a class-conditional run."""

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

    def metadata(self) -> dict[str, Any]:
        return {"sources": "packed", "truncate_sources": self.trim}


# ------------------------------------------------------------------------------------------------------- infilling


def infilling_inputs(space: NormalizedSpace, texts: Sequence[str], device: torch.device) -> InputsFn:
    """Inputs for filling the blanks of texts: all positions but the blanks are known; the whole text is decoded.

    A blank is ___ (three or more underscores: one token), [blank] (the same) or [blank:3] (three tokens).
    UserError for a space in which a position is not a token, and for a text that parse_blanks refuses.
    """
    if not isinstance(space.space, EmbeddingSpace):
        raise UserError("infilling needs one token per position: use a run of --latent_space embeddings")
    embeddings = space.space
    rows = [parse_blanks(embeddings, text) for text in texts]

    def padded(values: Sequence[int] | Sequence[bool], fill: int | bool) -> Tensor:
        return torch.tensor([*values, *[fill] * (space.length - len(values))])

    def inputs(first: int, last: int) -> SampleInputs:
        selected = rows[first:last]
        ids = torch.stack([padded(ids, embeddings.pad_id) for ids, _ in selected])
        text_mask = torch.arange(space.length) < torch.tensor([len(ids) for ids, _ in selected])[:, None]
        latents = space.encode(Batch(ids, text_mask).to(device))
        # in a space whose padding is generated, the padding is known too: the text keeps its length
        known = torch.stack([padded(known, not embeddings.variable_length) for _, known in selected]).to(device)
        assert latents.mean is not None
        return SampleInputs(None, KnownPositions(latents.mean, known), latents.mask, text_mask.to(device))

    return inputs


def parse_blanks(space: EmbeddingSpace, text: str) -> tuple[list[int], list[bool]]:
    """Token ids of a text with blanks, and whether each is known; a blank holds padding ids.

    UserError for a text without blanks, and for one that is longer than the space.
    """
    ids: list[int] = []
    known: list[bool] = []

    def add(tokens: list[int], is_known: bool) -> None:
        ids.extend(tokens)
        known.extend([is_known] * len(tokens))

    def tokenize(piece: str) -> list[int]:
        return tokenizer(piece, add_special_tokens=False)["input_ids"] if piece.strip() else []

    tokenizer, position = space.tokenizer, 0
    start, end = start_id(tokenizer), end_id(tokenizer)
    assert end is not None
    adds_start = start is not None and tokenizer("")["input_ids"][:1] == [start]
    add([start] if start is not None and adds_start else [], True)
    for blank in BLANK.finditer(text):
        add(tokenize(text[position : blank.start()].rstrip()), True)
        count = int(blank[1] or 1)
        if count == 0:
            raise UserError(f"{text[:40]!r}: {blank[0]} has no tokens to fill: write [blank:1] or more")
        add([space.pad_id] * count, False)
        position = blank.end()
    if not position:
        raise UserError(f"{text[:40]!r} has no blank: write ___ for one token, or [blank:3] for three")
    add(tokenize(text[position:]), True)
    add([end], True)
    if len(ids) > space.length:
        raise UserError(f"{text[:40]!r} has {len(ids)} tokens, and this run allows {space.length}: shorten it")
    return ids, known

"""Makes the inputs of sampling batches (SampleInputs of pipelines/sampling/sampler_call).

Sources of pairs reach the sampler as states that the denoiser attends to (ContextSources) or as a known prefix
(PackedSources). Sampling may start from texts of these sources (starts). Texts with blanks become known positions
around the blanks (infilling_inputs).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dataset_utils.batching import collate
from dataset_utils.packing import null_sources, pack_pairs, pack_sources
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.normalization import NormalizedSpace
from latent_models.tokenizers.special_ids import end_id, filler_id, separator_id
from pipelines.data.context_encoder import ContextEncoder
from pipelines.sampling.blanks import BlankText
from pipelines.sampling.sampler_call import InputsFn, SampleInputs
from utils.errors import UserError
from utils.records import Batch, Condition, KnownPositions, Latents
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
        self,
        context: ContextEncoder,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        prompts: Callable[[Sequence[str]], Tensor] | None = None,
    ) -> None:
        """prompts: sources -> what a text decoder reads of them, (n, P); None: it reads latents alone."""
        self.context, self.device, self.autocast, self.prompts = context, device, autocast, prompts

    def make_inputs(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> InputsFn:
        def inputs(first: int, last: int) -> SampleInputs:
            states, mask = self.context.encode(sources[first:last], self.device, self.autocast)
            prompt = None if self.prompts is None else self.prompts(sources[first:last]).to(self.device)
            condition = Condition.of(None if classes is None else classes[first:last], states, mask)
            return SampleInputs(condition, prompt=prompt)

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

    def __init__(self, space: NormalizedSpace, device: torch.device, trim: bool, has_null: bool = False) -> None:
        """trim: shorten sources that are too long instead of refusing them (--truncate_sources). has_null: whether the
        network trains with null sources, too; guidance then has what it needs.
        """
        self.space, self.device, self.trim, self.has_null = space, device, trim, has_null
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
            return self._of_batch(batch, self.space.encode(batch), None if classes is None else classes[first:last])

        return inputs

    def start(
        self, texts: Sequence[str], sources: Sequence[str], classes: Tensor | None
    ) -> tuple[Latents, SampleInputs]:
        """Clean latents (n, L, D) of pairs, and the inputs with which sampling starts from them. classes: (n,)."""
        space, tokenizer = self.embeddings, self.embeddings.tokenizer
        end, separator = end_id(tokenizer), separator_id(tokenizer)
        assert end is not None and separator is not None, "the space refuses a tokenizer without an end"
        ids = {"end_id": end, "separator_id": separator}
        table = pack_pairs(tokenizer, sources, texts, space.length, **ids, truncate=self.trim)
        if table.truncated:
            print(
                f"note: {table.truncated:.0%} of the pairs have more than {space.length} tokens, source and text "
                "together: their longer side is cut",
                file=sys.stderr,
            )
        batch = collate(table, range(len(texts)), space.pad_id, space.length).to(self.device)
        latents = self.space.encode(batch)
        return latents, self._of_batch(batch, latents, classes)

    def behind(self, texts: Sequence[BlankText], sources: Sequence[str]) -> list[BlankText]:
        """Texts with blanks, each behind its source. UserError for a pair that is too long."""
        space, tokenizer = self.embeddings, self.embeddings.tokenizer
        end, separator = end_id(tokenizer), separator_id(tokenizer)
        assert end is not None and separator is not None, "the space refuses a tokenizer without an end"
        table = pack_sources(tokenizer, sources, space.length, end_id=end, separator_id=separator, truncate=self.trim)
        assert table.prefix_lengths is not None
        found = []
        for text, row, length in zip(texts, table.ids.tolist(), table.prefix_lengths.tolist(), strict=True):
            found.append(text.behind(row[:length]))
            if (total := len(found[-1].ids)) > space.length:
                raise UserError(
                    f"{text.pieces[0][:40]!r}... and its source have {total} tokens together, and this run allows "
                    f"{space.length}: shorten one of them"
                )
        return found

    def _of_batch(self, batch: Batch, latents: Latents, classes: Tensor | None) -> SampleInputs:
        known = self.known(batch, latents)
        condition = None if classes is None else Condition.of(classes)
        return SampleInputs(condition, known, latents.mask, latents.mask & ~known.mask)

    def known(self, batch: Batch, latents: Latents) -> KnownPositions:
        """The known positions of a batch of packed pairs; with their null values if the network trains with them."""
        known = self.embeddings.known_positions(batch, latents)
        assert known is not None
        if not self.has_null:
            return known
        tokenizer, every = self.tokenizer, torch.ones(len(known.mask), dtype=torch.bool, device=known.mask.device)
        hidden = null_sources(batch, every, filler_id(tokenizer), tokenizer.all_special_ids)
        return replace(known, null=self.space.encode(hidden).mean)

    @property
    def tokenizer(self) -> Any:
        return self.embeddings.tokenizer

    @property
    def limit(self) -> tuple[int, int] | None:
        longest = self.space.length - 3  # without the end of the source, the separator, and one token of a target
        return (longest + 1, longest // 2 + 1) if self.trim else None

    def metadata(self) -> dict[str, Any]:
        return {"sources": "packed", "truncate_sources": self.trim}


def starts(
    sources: Sources,
    encode: Callable[[Sequence[str]], Latents],
    texts: Sequence[str],
    of_texts: Sequence[str],
    classes: Tensor | None = None,
) -> tuple[Latents, SampleInputs]:
    """Clean latents (n, L, D) of texts, and the inputs with which sampling starts from them, given their sources.

    encode: texts -> latents, where sources are not packed. of_texts: the source of each text. classes: (n,).
    """
    if isinstance(sources, PackedSources):
        return sources.start(texts, of_texts, classes)
    clean = encode(texts)
    inputs = sources.make_inputs(of_texts, 0, classes)(0, len(of_texts))
    return clean, replace(inputs, mask=clean.mask, decode_mask=clean.mask)


# ------------------------------------------------------------------------------------------------------- infilling


def infilling_inputs(
    space: NormalizedSpace, texts: Sequence[BlankText], device: torch.device, sources: PackedSources | None = None
) -> InputsFn:
    """Inputs for filling the blanks of texts in a space of embeddings: all positions but the blanks are known.

    sources: of texts that stand behind their sources; None: of texts alone.
    """
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
        positions = KnownPositions(latents.mean, known)
        if sources is not None and sources.has_null:
            lengths = torch.tensor([text.source_length for text in selected])
            of_source = torch.arange(space.length) < lengths[:, None]
            null = sources.known(Batch(ids, text_mask, known_mask=of_source).to(device), latents).null
            positions = replace(positions, null=null)
        return SampleInputs(None, positions, latents.mask, text_mask.to(device))

    return inputs

"""Filling the blanks of texts: the given text stays as typed, and only the blanks come from the model.

In a space of token embeddings every other position is known to the sampler. In spaces of a language model no position
is a token, so the text with its blanks masked is encoded, noised to time `strength` and denoised again (SDEdit); the
decoder then writes the text with all given tokens forced (latent_models/generation/infilling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.tokenizers.special_ids import filler_id
from pipelines.data.tokens import tokenizer_of
from pipelines.sampling.blanks import BlankText, parse_blanks
from pipelines.sampling.generator import TextGenerator
from pipelines.sampling.inputs import PackedSources, infilling_inputs
from pipelines.sampling.sampler_call import SampleInputs
from pipelines.sampling.sdedit import sdedit
from utils.errors import UserError
from utils.records import Batch, Latents

STRENGTH = 0.5  # time to which the latents of the given text are noised; more for other words, less for likelier ones


def infill(
    generator: TextGenerator,
    texts: Sequence[str],
    k: int,
    seed: int,
    strength: float | None = None,
    inputs: SampleInputs | None = None,
    packed: tuple[PackedSources, Sequence[str]] | None = None,
) -> list[list[str]]:
    """k versions of each text with its blanks filled. strength: see sdedit; None: 0.5, or none in embeddings.

    inputs: the condition of each text, such as its source; None: no condition. packed: in a space of embeddings, the
    source that stands before each text; None: texts without sources.
    UserError for a text without blanks or one that is too long, and for a strength in a space of embeddings.
    """
    generator.space.check_fill()
    space, tokenizer = generator.space.space, tokenizer_of(generator.space.space)
    parsed = [parse_blanks(tokenizer, text, generator.max_length, filler_id(tokenizer)) for text in texts]
    if isinstance(space, EmbeddingSpace):
        if strength is not None:
            raise UserError(f"strength {strength:g}: given words of embeddings are never noised: leave it out")

        def decode(latents: Latents, first: int, last: int) -> list[str]:
            return _filled(generator, latents, [text for text in parsed[first:last] for _ in range(k)])

        if packed is not None:
            parsed = packed[0].behind(parsed, packed[1])
        sources = None if packed is None else packed[0]
        known = infilling_inputs(generator.space, parsed, generator.device, sources)
        return generator.candidates(len(texts), k, seed, ("greedy",), known, quiet=True, decode=decode)["greedy"]
    repeated = [text for text in parsed for _ in range(k)]
    condition = None if inputs is None else inputs.repeat(k)
    strength = STRENGTH if strength is None else strength
    latents = sdedit(generator, _encode(generator, repeated), strength, seed, condition)
    found: list[str] = []
    for first in range(0, len(repeated), generator.batch_size):
        rows = slice(first, first + generator.batch_size)
        found += _filled(generator, Latents(latents.x0[rows], latents.mask[rows]), repeated[rows])
    return [found[i : i + k] for i in range(0, len(found), k)]


@torch.no_grad()
def _filled(generator: TextGenerator, latents: Latents, texts: Sequence[BlankText]) -> list[str]:
    """The texts whose blanks are decoded from latents (B, L, D), a row for each text."""
    ids, known, lengths = _padded(generator, texts)
    with generator.autocast():
        filled = generator.space.fill(latents, ids, known, lengths).tolist()
    tokenizer = tokenizer_of(generator.space.space)
    return [text.splice(tokenizer, row) for text, row in zip(texts, filled, strict=True)]


@torch.no_grad()
def _encode(generator: TextGenerator, texts: Sequence[BlankText]) -> Latents:
    """Clean latents (B, L, D) of the texts, with the filler of the tokenizer at their blanks."""
    parts = []
    for first in range(0, len(texts), generator.batch_size):
        ids, _, lengths = _padded(generator, texts[first : first + generator.batch_size])
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        parts.append(generator.space.encode(Batch(ids, mask)))
    return Latents(torch.cat([part.x0 for part in parts]), torch.cat([part.mask for part in parts]))


def _padded(generator: TextGenerator, texts: Sequence[BlankText]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and known positions (B, T) and lengths (B,), on the device."""
    tokenizer, longest = tokenizer_of(generator.space.space), max(len(text.ids) for text in texts)
    ids = [text.ids + [tokenizer.pad_token_id] * (longest - len(text.ids)) for text in texts]
    known = [text.known + [True] * (longest - len(text.ids)) for text in texts]
    lengths = [len(text.ids) for text in texts]
    tensors = (torch.tensor(ids), torch.tensor(known), torch.tensor(lengths))
    return tensors[0].to(generator.device), tensors[1].to(generator.device), tensors[2].to(generator.device)

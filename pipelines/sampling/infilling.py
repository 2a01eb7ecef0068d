"""Infilling: texts with blanks, of which only the blanks are written. For spaces in which a position is a token.

A blank is ___ (three or more underscores: one token), [blank] (the same) or [blank:3] (three tokens). All else stays as
it is at every step (diffusion/anchoring).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from latent_models.embeddings import EmbeddingSpace
from latent_models.normalisation import Normalised
from latent_models.spaces import LatentSpace
from latent_models.tokenizers.identity import end_id, start_id
from pipelines.sampling.sources import Tell
from pipelines.sampling.told import Told
from utils.errors import UserError
from utils.records import Anchor, Batch

BLANK = re.compile(r"_{3,}|\[blank(?::(\d{1,3}))?\]")


def with_blanks(space: EmbeddingSpace, text: str) -> tuple[list[int], list[bool]]:
    """Ids of a text and which of them are given; ids at blanks mean nothing.

    UserError for a text without blanks, or one that is longer than the space.
    """
    ids: list[int] = []
    given: list[bool] = []

    def add(tokens: list[int], known: bool) -> None:
        ids.extend(tokens)
        given.extend([known] * len(tokens))

    tokenizer, place = space.tokenizer, 0
    start, end = start_id(tokenizer), end_id(tokenizer)
    assert end is not None
    probe = tokenizer("")["input_ids"]
    add([start] if start is not None and probe[:1] == [start] else [], True)
    for blank in BLANK.finditer(text):
        add(_tokens(tokenizer, text[place : blank.start()].rstrip()), True)
        count = int(blank[1] or 1)
        if count == 0:
            raise UserError(f"{text[:40]!r}: {blank[0]} leaves no room for a word: give [blank:1] or more")
        add([space.pad_id] * count, False)
        place = blank.end()
    if not place:
        raise UserError(f"{text[:40]!r} has no blank: put ___ where a word is to be written, or [blank:3] for three")
    add(_tokens(tokenizer, text[place:]), True)
    add([end], True)
    if len(ids) > space.length:
        raise UserError(f"{text[:40]!r} has {len(ids)} tokens, and this run writes {space.length}: shorten it")
    return ids, given


def _tokens(tokenizer: object, piece: str) -> list[int]:
    return tokenizer(piece, add_special_tokens=False)["input_ids"] if piece.strip() else []  # type: ignore[operator]


def tell_blanks(space: Normalised, texts: Sequence[str], device: torch.device) -> Tell:
    """What a generator is told of texts with blanks: all but the blanks is given, all of it is read."""
    inner: LatentSpace = space.space
    if not space.trainable:
        raise UserError("blanks are filled where a position is a token: use a run of --latent_space embeddings")
    embeddings = cast(EmbeddingSpace, inner)
    rows = [with_blanks(embeddings, text) for text in texts]

    def padded(values: Sequence[int] | Sequence[bool], fill: int | bool) -> Tensor:
        return torch.tensor([*values, *[fill] * (space.length - len(values))])

    def told(first: int, last: int) -> Told:
        some = rows[first:last]
        ids = torch.stack([padded(ids, embeddings.pad_id) for ids, _ in some])
        there = torch.arange(space.length) < torch.tensor([len(ids) for ids, _ in some])[:, None]
        latents = space.encode(Batch(ids, there).to(device))
        given = torch.stack([padded(given, not embeddings.masked) for _, given in some]).to(device)
        # where padding is text it is given, too: the text ends where it ends
        assert latents.mean is not None
        return Told(None, Anchor(latents.mean, given), latents.mask, there.to(device))

    return told

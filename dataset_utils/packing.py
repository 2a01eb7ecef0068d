"""A source and its target as one sequence, and running text as blocks with a given beginning.

    [start] source [end] [separator] [start] target [end]
    |------------- given ----------| |-- to be written -|

Gong et al. 2023 (DiffuSeq), arXiv:2210.08933, section 3: only the target is noised, the source stays as it is. Which
tokens are given is a number per row of the token table; `batching.collate` turns it into `Batch.given`.
Knows a tokenizer by its call and the ids of its end and its separator; nothing of latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataset_utils.batching import TokenTable
from utils.errors import UserError
from utils.records import Batch

MARKS = 3  # two end tokens and the separator, beside the tokens of source and target
_CHUNK = 10_000  # texts tokenized at a time


def trimmed(source: np.ndarray, target: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of each are kept, where both together may have `budget`: all (n,), in tokens.

    The published rule, a token at a time, in closed form: the longer one is shortened until both fit; where they become
    equally long before, both are.
    """
    half = budget // 2
    fits = source + target <= budget
    kept_source = np.where(source >= target, np.maximum(budget - target, half), np.minimum(source, half))
    kept_target = np.where(target >= source, np.maximum(budget - source, half), np.minimum(target, half))
    return np.where(fits, source, kept_source), np.where(fits, target, kept_target)


def pack_pairs(
    tokenizer: Any,
    sources: Sequence[str],
    targets: Sequence[str],
    max_length: int,
    *,
    end_id: int,
    separator_id: int,
    trim: bool = False,
) -> TokenTable:
    """Pairs as rows of at most max_length tokens, `given` counting those of the source and the separator.

    end_id, separator_id: of the tokenizer. Pairs that are too long are trimmed from the longer side, and their share is
    `truncated`. trim: also sources that by themselves exceed max_length - 3 tokens; else they are a UserError.
    """
    assert len(sources) == len(targets), f"{len(sources)} sources beside {len(targets)} targets"
    budget = _budget(max_length)
    pieces, given, cut = [], [], 0
    for first, chunk in _chunks(tokenizer, sources, end_id):
        other = _without_end(tokenizer, targets[first : first + len(chunk)], end_id)
        lengths, theirs = _lengths(chunk), _lengths(other)
        _refuse_long(lengths, first, max_length, trim)
        kept, written = trimmed(lengths, theirs, budget)
        cut += int(((kept < lengths) | (written < theirs)).sum())
        lists = zip(chunk, other, kept.tolist(), written.tolist(), strict=True)
        pieces.append(_array([[*a[:s], end_id, separator_id, *b[:t], end_id] for a, b, s, t in lists]))
        given.append(kept + 2)
    return _table(pieces, given, cut, max_length)


def pack_sources(
    tokenizer: Any,
    sources: Sequence[str],
    max_length: int,
    *,
    end_id: int,
    separator_id: int,
    target_lengths: Sequence[int] | np.ndarray | None = None,
    trim: bool = False,
) -> TokenTable:
    """Sources alone, as rows with room for the target that is to be written: lengths count it, ids there mean nothing.

    target_lengths: (n,) tokens to be written, special ones included, cut to what the source leaves; None: all that it
    leaves. trim: a source longer than max_length - 3 tokens keeps the half that a pair would leave it.
    Differs from the published code, which packs the reference answer to learn how much of the source it keeps.
    """
    budget = _budget(max_length)
    pieces, given, cut = [], [], 0
    for first, chunk in _chunks(tokenizer, sources, end_id):
        lengths = _lengths(chunk)
        _refuse_long(lengths, first, max_length, trim)
        kept = np.where(lengths > budget, budget // 2, lengths)
        cut += int((kept < lengths).sum())
        pieces.append(_array([[*a[:s], end_id, separator_id] for a, s in zip(chunk, kept.tolist(), strict=True)]))
        given.append(kept + 2)
    table = _table(pieces, given, cut, max_length)
    begun = np.concatenate(given)
    room = max_length - begun
    wanted = room if target_lengths is None else np.minimum(np.asarray(target_lengths), room)
    return replace(table, lengths=(begun + wanted).astype(np.int32))


def pack_blocks(tokenizer: Any, texts: Sequence[str], max_length: int) -> TokenTable:
    """Running text: texts with their special tokens, one after another, in blocks of exactly max_length tokens.

    For pre-training on unlabelled text (Gong et al. 2023 (DiffuSeq-v2), arXiv:2310.05793): `with_prefix` says what of a
    block is given. The remainder that does not fill a block is left out.
    Differs from the published code: every line is used, not the second half of a file.
    """
    tokens = np.concatenate([_flat(chunk) for _, chunk in _chunks(tokenizer, texts, None)])
    count = len(tokens) // max_length
    if not count:
        raise UserError(
            f"the texts hold {len(tokens)} tokens, less than one block of {max_length}: "
            "give more, or lower --max_seq_len"
        )
    ids = tokens[: count * max_length].reshape(count, max_length)
    return TokenTable(ids, np.full(count, max_length, np.int32), 0.0, max_length)


def with_prefix(batch: Batch, uniform: Tensor, share: float = 0.5) -> Batch:
    """The batch with a beginning given: a whole number of tokens, uniform in [0, share T).

    uniform: (B,) in [0, 1), drawn by the caller for (seed, step) and the global batch.
    """
    length = batch.input_ids.shape[1]
    begun = (uniform * share * length).long()  # (B,)
    place = torch.arange(length, device=begun.device)
    return replace(batch, given=(place < begun[:, None]) & batch.attention_mask)


# ------------------------------------------------------------------------------------------------ parts


def _budget(max_length: int) -> int:
    if max_length < MARKS + 2:
        raise UserError(f"--max_seq_len {max_length} has no room for a pair: give {MARKS + 2} or more")
    return max_length - MARKS


def _chunks(tokenizer: Any, texts: Sequence[str], end_id: int | None) -> Iterator[tuple[int, list[list[int]]]]:
    """(row of the first, token ids) of some texts at a time."""
    if not len(texts):
        raise UserError("there are no texts to tokenize: check the data files")
    for first in range(0, len(texts), _CHUNK):
        yield first, _without_end(tokenizer, texts[first : first + _CHUNK], end_id)


def _without_end(tokenizer: Any, texts: Sequence[str], end_id: int | None) -> list[list[int]]:
    """Ids with the special tokens of a single text, but for its end token; with end_id None, that too."""
    rows = tokenizer(
        list(texts), truncation=False, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip
    return [row[:-1] if end_id is not None and row and row[-1] == end_id else row for row in rows]


def _lengths(rows: list[list[int]]) -> np.ndarray:
    return np.array([len(row) for row in rows], np.int64)


def _refuse_long(lengths: np.ndarray, first: int, max_length: int, trim: bool) -> None:
    long = np.flatnonzero(lengths > max_length - MARKS)
    if len(long) and not trim:
        row, tokens = first + int(long[0]) + 1, int(lengths[long[0]])
        raise UserError(
            f"the source of row {row} has {tokens} tokens, and {max_length - MARKS} is all that --max_seq_len "
            f"{max_length} leaves to source and target: raise it, or pass --trim_sources"
        )


def _flat(rows: list[list[int]]) -> np.ndarray:
    return np.fromiter((i for row in rows for i in row), np.int32, sum(map(len, rows)))


def _array(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n, longest), 0 beyond a row's length, and lengths (n,)."""
    lengths = _lengths(rows)
    ids = np.zeros((len(rows), int(lengths.max())), np.int32)
    ids[np.arange(ids.shape[1]) < lengths[:, None]] = _flat(rows)
    return ids, lengths


def _table(
    pieces: list[tuple[np.ndarray, np.ndarray]], given: list[np.ndarray], cut: int, max_length: int
) -> TokenTable:
    """cut: rows that lost tokens."""
    width = max(ids.shape[1] for ids, _ in pieces)
    ids = np.concatenate([np.pad(ids, ((0, 0), (0, width - ids.shape[1]))) for ids, _ in pieces])
    lengths = np.concatenate([lengths for _, lengths in pieces]).astype(np.int32)
    return TokenTable(ids, lengths, cut / len(ids), max_length, np.concatenate(given).astype(np.int32))

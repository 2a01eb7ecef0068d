"""Pack a source and its target into one sequence, or running text into blocks with a known prefix.

    [start] source [end] [separator] [start] target [end]
    |------------- known ----------| |---- generated ---|

Gong et al. 2023 (DiffuSeq), arXiv:2210.08933, section 3: only the target is noised; the source stays clean. The token
table holds the number of known tokens of each row; `batching.collate` turns it into `Batch.known_mask`.
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

NUM_SPECIAL = 3  # tokens besides those of source and target: two end tokens and the separator
_CHUNK = 10_000  # texts that are tokenized at once


def truncate_pair(source: np.ndarray, target: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (n,) to which pairs of lengths source (n,) and target (n,) are truncated, so that both fit into `budget`.

    Closed form of the published rule, which removes one token at a time: from the longer side until both fit, and from
    both sides once they are equally long.
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
    truncate: bool = False,
) -> TokenTable:
    """Pack pairs into rows of at most max_length tokens; prefix_lengths count the source and the separator.

    end_id, separator_id: token ids of the tokenizer. Pairs that are too long are truncated on the longer side;
    `truncated` is their share. truncate: also truncate sources that alone exceed max_length - 3 tokens; otherwise they
    raise a UserError.
    """
    assert len(sources) == len(targets), f"{len(sources)} sources beside {len(targets)} targets"
    budget = _budget(max_length)
    pieces, prefixes, num_truncated = [], [], 0
    for first, chunk in _chunks(tokenizer, sources, end_id):
        other = _without_end(tokenizer, targets[first : first + len(chunk)], end_id)
        lengths, target_lengths = _lengths(chunk), _lengths(other)
        _check_source_lengths(lengths, first, max_length, truncate)
        kept, kept_target = truncate_pair(lengths, target_lengths, budget)
        num_truncated += int(((kept < lengths) | (kept_target < target_lengths)).sum())
        lists = zip(chunk, other, kept.tolist(), kept_target.tolist(), strict=True)
        pieces.append(_array([[*a[:s], end_id, separator_id, *b[:t], end_id] for a, b, s, t in lists]))
        prefixes.append(kept + 2)
    return _table(pieces, prefixes, num_truncated, max_length)


def pack_sources(
    tokenizer: Any,
    sources: Sequence[str],
    max_length: int,
    *,
    end_id: int,
    separator_id: int,
    target_lengths: Sequence[int] | np.ndarray | None = None,
    truncate: bool = False,
) -> TokenTable:
    """Pack sources into rows with room for a target: lengths count the target, whose ids in the table have no meaning.

    target_lengths: (n,) tokens to generate, special tokens included, limited to the room that the source leaves; None:
    all of that room. truncate: a source longer than max_length - 3 tokens keeps half of them, as in a pair.
    Differs from the published code, which packs the reference target to determine how much of a source is truncated.
    """
    budget = _budget(max_length)
    pieces, prefixes, num_truncated = [], [], 0
    for first, chunk in _chunks(tokenizer, sources, end_id):
        lengths = _lengths(chunk)
        _check_source_lengths(lengths, first, max_length, truncate)
        kept = np.where(lengths > budget, budget // 2, lengths)
        num_truncated += int((kept < lengths).sum())
        pieces.append(_array([[*a[:s], end_id, separator_id] for a, s in zip(chunk, kept.tolist(), strict=True)]))
        prefixes.append(kept + 2)
    table = _table(pieces, prefixes, num_truncated, max_length)
    prefix = np.concatenate(prefixes)
    room = max_length - prefix
    wanted = room if target_lengths is None else np.minimum(np.asarray(target_lengths), room)
    return replace(table, lengths=(prefix + wanted).astype(np.int32))


def pack_blocks(tokenizer: Any, texts: Sequence[str], max_length: int) -> TokenTable:
    """Join texts, with their special tokens, and cut them into blocks of exactly max_length tokens.

    For pre-training on unlabeled text (Gong et al. 2023 (DiffuSeq-v2), arXiv:2310.05793); `reveal_prefix` chooses the
    known prefix of a block. The last tokens, which do not fill a block, are dropped.
    Differs from the published code: every line is used, not the second half of a file.
    """
    tokens = np.concatenate([_flat(chunk) for _, chunk in _chunks(tokenizer, texts, None)])
    count = len(tokens) // max_length
    if not count:
        raise UserError(
            f"the texts have {len(tokens)} tokens, fewer than one block of {max_length}: "
            "give more, or lower --max_seq_len"
        )
    ids = tokens[: count * max_length].reshape(count, max_length)
    return TokenTable(ids, np.full(count, max_length, np.int32), 0.0, max_length)


def reveal_prefix(batch: Batch, uniform: Tensor, max_fraction: float = 0.5) -> Batch:
    """The batch with a known prefix of a random number of tokens, uniform in [0, max_fraction T).

    uniform: (B,) in [0, 1), drawn by the caller for (seed, step) and the global batch.
    """
    length = batch.input_ids.shape[1]
    prefix = (uniform * max_fraction * length).long()  # (B,)
    position = torch.arange(length, device=prefix.device)
    return replace(batch, known_mask=(position < prefix[:, None]) & batch.attention_mask)


def null_sources(batch: Batch, rows: Tensor, null_id: int, special_ids: Sequence[int]) -> Batch:
    """The batch whose sources are null in some rows: every known token is null_id, but for special tokens.

    rows: (B,) bool. special_ids: tokens that stay, such as separators. A null source has the length of the source, so
    that its target stands at the same positions.
    """
    assert batch.known_mask is not None, "only packed pairs have sources"
    tokens = batch.known_mask & ~torch.isin(batch.input_ids, torch.tensor(list(special_ids), device=rows.device))
    return replace(batch, input_ids=torch.where(rows[:, None] & tokens, null_id, batch.input_ids))


# ------------------------------------------------------------------------------------------------ parts


def _budget(max_length: int) -> int:
    if max_length < NUM_SPECIAL + 2:
        raise UserError(f"--max_seq_len {max_length} is too short for a pair: give {NUM_SPECIAL + 2} or more")
    return max_length - NUM_SPECIAL


def _chunks(tokenizer: Any, texts: Sequence[str], end_id: int | None) -> Iterator[tuple[int, list[list[int]]]]:
    """Yield (first row, token ids) for chunks of texts."""
    if not len(texts):
        raise UserError("there are no texts to tokenize: check the data files")
    for first in range(0, len(texts), _CHUNK):
        yield first, _without_end(tokenizer, texts[first : first + _CHUNK], end_id)


def _without_end(tokenizer: Any, texts: Sequence[str], end_id: int | None) -> list[list[int]]:
    """Token ids of single texts, special tokens included, except the end token end_id; None: keep that one too."""
    rows = tokenizer(
        list(texts), truncation=False, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip
    return [row[:-1] if end_id is not None and row and row[-1] == end_id else row for row in rows]


def _lengths(rows: list[list[int]]) -> np.ndarray:
    return np.array([len(row) for row in rows], np.int64)


def _check_source_lengths(lengths: np.ndarray, first: int, max_length: int, truncate: bool) -> None:
    long = np.flatnonzero(lengths > max_length - NUM_SPECIAL)
    if len(long) and not truncate:
        row, tokens = first + int(long[0]) + 1, int(lengths[long[0]])
        raise UserError(
            f"the source of row {row} has {tokens} tokens, but --max_seq_len {max_length} leaves only "
            f"{max_length - NUM_SPECIAL} for source and target: raise it, or pass --truncate_sources"
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
    pieces: list[tuple[np.ndarray, np.ndarray]], prefixes: list[np.ndarray], num_truncated: int, max_length: int
) -> TokenTable:
    """One table of several pieces (ids, lengths). num_truncated: rows that lost tokens."""
    width = max(ids.shape[1] for ids, _ in pieces)
    ids = np.concatenate([np.pad(ids, ((0, 0), (0, width - ids.shape[1]))) for ids, _ in pieces])
    lengths = np.concatenate([lengths for _, lengths in pieces]).astype(np.int32)
    return TokenTable(ids, lengths, num_truncated / len(ids), max_length, np.concatenate(prefixes).astype(np.int32))

"""Texts -> token tables -> batches, and which rows step s sees.

A corpus is tokenized once into a table of numbers; a batch is then a slice of it. Which rows a step takes is a pure
function of (seed, step), so that a resumed run continues with the rows that it would have seen.
Knows a tokenizer by its call only, and nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError
from utils.progress import Progress
from utils.records import Batch
from utils.seeding import generator

_CHUNK = 10_000  # texts tokenized at a time: lists of Python integers take ten times the memory of the table
_MANY = 50_000  # texts: from here on progress is shown


@dataclass(frozen=True)
class TokenTable:
    """Token ids of n texts, one row each."""

    ids: np.ndarray  # (n, longest) uint16 or int32, whichever the vocabulary needs; 0 beyond a row's length
    lengths: np.ndarray  # (n,) int32, tokens, special tokens included
    truncated: float  # share of the texts that were longer than max_length
    max_length: int  # tokens
    given: np.ndarray | None = None  # (n,) int32, tokens at the beginning of a row that are not to be written (packing)

    def __len__(self) -> int:
        return len(self.lengths)


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> TokenTable:
    """Tokenize texts with the tokenizer's special tokens, each cut to max_length tokens, special tokens included.

    tokenizer: any Hugging Face tokenizer. Its padding is not used: `collate` pads. Errors: UserError where there is no
    text, or where max_length has no room for a token beside the special ones.
    """
    if not len(texts):
        raise UserError("there are no texts to tokenize: check the data files")
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= special:
        raise UserError(
            f"a maximum length of {max_length} tokens leaves no room beside {special} special ones: "
            f"pass --max_seq_len {special + 1} or more"
        )
    narrow = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32  # of WMT14's 4.5 million pairs this halves gigabytes
    ids, lengths, truncated = np.zeros((len(texts), max_length), narrow), np.zeros(len(texts), np.int32), 0
    for start, rows in _batches(tokenizer, texts, max_length):
        full = []
        for i, row in enumerate(rows, start):
            ids[i, : len(row)] = row
            lengths[i] = len(row)
            if len(row) == max_length:
                full.append(texts[i])
        # a full row may have fitted exactly: only those are counted again in full
        truncated += sum(len(row) > max_length for row in _ids(tokenizer, full, None)) if full else 0
    longest = int(lengths.max())
    if longest <= max_length // 2:
        ids = ids[:, :longest].copy()  # else a view: a copy would need both at once
    return TokenTable(ids[:, :longest], lengths, truncated / len(texts), max_length)


def _batches(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> Iterator[tuple[int, list[list[int]]]]:
    """Token ids of one chunk of texts after another, and the row that it begins at. Of many texts progress is shown."""
    quiet = len(texts) < _MANY or (dist.is_available() and dist.is_initialized() and dist.get_rank() > 0)
    with _on_all_cores(len(texts)), Progress("tokenize", len(texts), unit="text", quiet=quiet) as bar:
        for start in range(0, len(texts), _CHUNK):
            rows = _ids(tokenizer, list(texts[start : start + _CHUNK]), max_length)
            yield start, rows
            bar.advance(len(rows))


@contextmanager
def _on_all_cores(n: int) -> Iterator[None]:
    """Let a fast tokenizer use threads where there are many texts, whatever the environment says of the rest."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if n >= _MANY:
        os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def token_counts(tokenizer: Any, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """(n,) tokens of each text, special tokens included and nothing cut; how many of all tokens are unknown ones."""
    counts, unknown = np.zeros(len(texts), np.int32), 0
    for start, rows in _batches(tokenizer, texts, None):
        counts[start : start + len(rows)] = [len(row) for row in rows]
        if tokenizer.unk_token_id is not None:
            unknown += sum(row.count(tokenizer.unk_token_id) for row in rows)
    return counts, unknown


def _ids(tokenizer: Any, texts: list[str], max_length: int | None) -> list[list[int]]:
    return tokenizer(
        texts, truncation=max_length is not None, max_length=max_length, padding=False,
        return_attention_mask=False, return_token_type_ids=False, verbose=False,
    )["input_ids"]  # fmt: skip


def collate(
    table: TokenTable,
    rows: Tensor | Sequence[int],
    pad_id: int,
    pad_to: int | None = None,
    *,
    source: TokenTable | None = None,
    source_pad_id: int | None = None,
    source_pad_to: int | None = None,
    labels: Sequence[int] | None = None,
) -> Batch:
    """The rows of a table as a Batch on the CPU: ids (B, T) int64, mask (B, T) bool, True where there is text.

    pad_to: T in tokens; None pads to the longest row of this batch (on a GPU give a number: one shape compiles once).
    source, labels: tables of the same n rows; the batch then holds source_ids, source_mask (B, S) and class_id (B,).
    source_pad_id: that of the source's tokenizer; None: pad_id.
    """
    index = np.asarray(rows, dtype=np.int64)
    input_ids, mask = _padded(table, index, pad_id, pad_to)
    batch = Batch(input_ids, mask)
    if table.given is not None:
        batch.given = torch.from_numpy(np.arange(mask.shape[1]) < table.given[index][:, None])
    if source is not None:
        assert len(source) == len(table), f"{len(source)} sources beside {len(table)} texts"
        source_pad = pad_id if source_pad_id is None else source_pad_id
        batch.source_ids, batch.source_mask = _padded(source, index, source_pad, source_pad_to)
    if labels is not None:
        assert len(labels) == len(table), f"{len(labels)} labels beside {len(table)} texts"
        batch.class_id = torch.tensor([int(labels[i]) for i in index.tolist()])
    return batch


def _padded(table: TokenTable, index: np.ndarray, pad_id: int, pad_to: int | None) -> tuple[Tensor, Tensor]:
    lengths = table.lengths[index]
    longest = int(lengths.max(initial=0))
    width = longest if pad_to is None else pad_to
    assert longest <= width, f"a row of {longest} tokens cannot be padded to {width}: tokenize with that max_length"
    mask = np.arange(width) < lengths[:, None]  # (B, T)
    ids = np.full((len(index), width), pad_id, np.int64)
    held = min(width, table.ids.shape[1])  # the table is as wide as its longest row
    ids[:, :held] = np.where(mask[:, :held], table.ids[index, :held], pad_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)


# ------------------------------------------------------------------------------------------------ order


@lru_cache(maxsize=4)  # a run asks for the same epoch at every step, and at a border for two
def _order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, "epoch", epoch))


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """(n,) the rows of one epoch in their order: a permutation that depends on nothing but the arguments."""
    return _order(seed, epoch, n).clone()


def indices(seed: int, step: int, batch: int, n: int) -> Tensor:
    """(batch,) the rows, of n, that step `step` (from 0) takes: a pure function.

    Epochs follow each other without a ragged batch: a step at a border takes the end of one and the beginning of the
    next, and a batch larger than the corpus takes several. Every row comes once per epoch.
    """
    if n < 1:
        raise UserError("there are no rows to draw a batch from: check the data files")
    parts = []
    position, end = step * batch, (step + 1) * batch
    while position < end:
        epoch, offset = divmod(position, n)
        parts.append(_order(seed, epoch, n)[offset : offset + end - position])
        position += len(parts[-1])
    return torch.cat(parts)

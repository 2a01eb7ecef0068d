"""Texts -> token tables -> batches.

A corpus is tokenized once into a table of numbers; a batch is a slice of that table. This module calls a tokenizer, and
does not depend on models. Which rows a training step takes is decided in pipelines/data/batch_sampler.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError
from utils.progress import ProgressBar
from utils.records import Batch

_CHUNK = 10_000  # texts that are tokenized at once: lists of Python integers take ten times the memory of the table
PROGRESS_FROM = 50_000  # texts from which a progress bar is shown


@dataclass(frozen=True)
class TokenTable:
    """Token ids of n texts, one row each."""

    ids: np.ndarray  # (n, longest) uint16 if the vocabulary fits, else int32; 0 beyond a row's length
    lengths: np.ndarray  # (n,) int32, tokens, special tokens included
    truncated: float  # share of the texts that were truncated to max_length
    max_length: int  # tokens
    prefix_lengths: np.ndarray | None = None  # (n,) int32, known tokens at the beginning of each row (see packing)

    def __len__(self) -> int:
        return len(self.lengths)


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> TokenTable:
    """Tokenize texts, with special tokens, and truncate each to max_length tokens, special tokens included.

    tokenizer: any Hugging Face tokenizer; its padding is not used, since `collate` pads. Raises UserError for an empty
    list, and where max_length leaves no token beside the special ones.
    """
    if not len(texts):
        raise UserError("there are no texts to tokenize: check the data files")
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= special:
        raise UserError(
            f"a maximum length of {max_length} tokens leaves no room beside {special} special tokens: "
            f"pass --max_seq_len {special + 1} or more"
        )
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32  # half the memory: gigabytes for WMT14
    ids, lengths, truncated = np.zeros((len(texts), max_length), dtype), np.zeros(len(texts), np.int32), 0
    for start, rows in _batches(tokenizer, texts, max_length):
        full = []
        for i, row in enumerate(rows, start):
            ids[i, : len(row)] = row
            lengths[i] = len(row)
            if len(row) == max_length:
                full.append(texts[i])
        # A full row may have fitted exactly: tokenize only those again, without truncation.
        truncated += sum(len(row) > max_length for row in _ids(tokenizer, full, None)) if full else 0
    longest = int(lengths.max())
    if longest <= max_length // 2:
        ids = ids[:, :longest].copy()  # otherwise a view: a copy would need the memory twice
    return TokenTable(ids[:, :longest], lengths, truncated / len(texts), max_length)


def _batches(tokenizer: Any, texts: Sequence[str], max_length: int | None) -> Iterator[tuple[int, list[list[int]]]]:
    """Yield (first row, token ids) for chunks of texts. A progress bar is shown for PROGRESS_FROM texts or more."""
    quiet = len(texts) < PROGRESS_FROM or (dist.is_available() and dist.is_initialized() and dist.get_rank() > 0)
    with _tokenizer_threads(len(texts)), ProgressBar("tokenize", len(texts), unit="text", disable=quiet) as bar:
        for start in range(0, len(texts), _CHUNK):
            rows = _ids(tokenizer, list(texts[start : start + _CHUNK]), max_length)
            yield start, rows
            bar.advance(len(rows))


@contextmanager
def _tokenizer_threads(n: int) -> Iterator[None]:
    """Make fast tokenizers use threads for many texts, by overriding TOKENIZERS_PARALLELISM."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    if n >= PROGRESS_FROM:
        os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def token_counts(tokenizer: Any, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Untruncated lengths (n,) in tokens, special tokens included; and the number of unknown tokens in all texts."""
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
    labels: Sequence[int] | None = None,
) -> Batch:
    """Rows of a table as a Batch on the CPU: ids (B, T) int64, mask (B, T) bool, True where there is text.

    pad_to: T in tokens; None: the longest row of the batch (a fixed number avoids recompilation on a GPU).
    labels: (n,) classes of all rows of the table; the batch then has class_id (B,).
    """
    index = np.asarray(rows, dtype=np.int64)
    input_ids, mask = _pad(table, index, pad_id, pad_to)
    batch = Batch(input_ids, mask)
    if table.prefix_lengths is not None:
        batch.known_mask = torch.from_numpy(np.arange(mask.shape[1]) < table.prefix_lengths[index][:, None])
    if labels is not None:
        assert len(labels) == len(table), f"{len(labels)} labels beside {len(table)} texts"
        batch.class_id = torch.tensor([int(labels[i]) for i in index.tolist()])
    return batch


def _pad(table: TokenTable, index: np.ndarray, pad_id: int, pad_to: int | None) -> tuple[Tensor, Tensor]:
    lengths = table.lengths[index]
    longest = int(lengths.max(initial=0))
    width = longest if pad_to is None else pad_to
    assert longest <= width, f"a row of {longest} tokens cannot be padded to {width}: tokenize with that max_length"
    mask = np.arange(width) < lengths[:, None]  # (B, T)
    ids = np.full((len(index), width), pad_id, np.int64)
    stored = min(width, table.ids.shape[1])  # the table is as wide as its longest row
    ids[:, :stored] = np.where(mask[:, :stored], table.ids[index, :stored], pad_id)
    return torch.from_numpy(ids), torch.from_numpy(mask)

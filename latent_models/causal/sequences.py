"""Texts, each after its prompt, as token ids for a causal language model.

    start | prompt | between | text | end        with a prompt: a source, or the name of a class
    start | text | end                           without

Only the text and its end count in the loss, and are sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_models.causal.boundaries import Boundaries
from utils.errors import UserError

_CHUNK = 10_000  # texts tokenized at once: lists of Python integers take much memory


@dataclass(frozen=True)
class CausalBatch:
    """Sequences of a batch, padded on the right."""

    input_ids: Tensor  # (B, T) int64
    targets: Tensor  # (N,) int64, positions in the flattened (B * T) of the tokens that count

    def to(self, device: torch.device | str) -> CausalBatch:
        return CausalBatch(self.input_ids.to(device, non_blocking=True), self.targets.to(device, non_blocking=True))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of CausalLM.forward."""
        return self.input_ids, self.targets

    def num_targets(self) -> Tensor:
        """(B,) float: tokens of each text that count."""
        counts = torch.zeros(self.input_ids.numel(), device=self.input_ids.device)
        return counts.index_fill_(0, self.targets, 1.0).view(self.input_ids.shape).sum(1)


@dataclass(frozen=True)
class Sequences:
    """Token ids of n sequences."""

    ids: np.ndarray  # (tokens of all,) int32
    ends: np.ndarray  # (n + 1,) int64: sequence i is ids[ends[i] : ends[i + 1]]
    text_starts: np.ndarray  # (n,) int32, tokens before the text
    truncated: float  # share of the texts that were truncated
    truncated_prompts: float
    pad_id: int

    def __len__(self) -> int:
        return len(self.text_starts)

    def lengths(self) -> np.ndarray:
        """(n,) tokens of each sequence, prompts and special tokens included."""
        return np.diff(self.ends)

    def target_counts(self) -> np.ndarray:
        """(n,) tokens of each text that count in the loss."""
        return self.lengths() - self.text_starts

    def batch(self, rows: Tensor, without_prompt: Tensor | None = None) -> CausalBatch:
        """Rows (B,) as a batch on the CPU. without_prompt: (B,) bool, of these the text alone follows the start."""
        index = rows.numpy()
        lengths, starts = self.lengths()[index], self.text_starts[index]
        firsts = self.ends[index] + 1
        if without_prompt is not None:
            left_out = np.where(without_prompt.numpy(), starts - 1, 0)
            lengths, starts, firsts = lengths - left_out, starts - left_out, firsts + left_out
        width = int(lengths.max())
        ids = np.full((len(index), width), self.pad_id, np.int64)
        for row, i in enumerate(index):
            ids[row, 0] = self.ids[self.ends[i]]
            ids[row, 1 : lengths[row]] = self.ids[firsts[row] : self.ends[i + 1]]
        at = np.arange(width)
        counts = (at >= starts[:, None]) & (at < lengths[:, None])
        return CausalBatch(torch.from_numpy(ids), torch.from_numpy(np.flatnonzero(counts)))


def encode(
    tokenizer: Any,
    boundaries: Boundaries,
    texts: Sequence[str],
    prompts: Sequence[str] | None,
    max_text: int,
    max_prompt: int,
) -> Sequences:
    """Tokenize texts with their prompts.

    max_text: longest text in tokens, start and end included. max_prompt: longest prompt. What is longer is truncated.
    Raises UserError if there are no texts.
    """
    if not len(texts):
        raise UserError("there are no texts to train on: check the data files")
    parts: list[np.ndarray] = []
    lengths, starts = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int32)
    long, long_prompts = 0, 0
    for first in range(0, len(texts), _CHUNK):
        some = list(texts[first : first + _CHUNK])
        before = prompt_ids(
            tokenizer, boundaries, None if prompts is None else prompts[first : first + _CHUNK], len(some), max_prompt
        )
        for i, (head, body) in enumerate(zip(before, plain_ids(tokenizer, some), strict=True), first):
            long += len(body) > max_text - 2
            row = [*head.ids, *body[: max_text - 2], boundaries.end_id]
            long_prompts += head.truncated
            parts.append(np.asarray(row, np.int32))
            lengths[i], starts[i] = len(row), len(head.ids)
    return Sequences(
        np.concatenate(parts),
        np.concatenate([[0], lengths.cumsum()]),
        starts,
        long / len(texts),
        long_prompts / len(texts),
        boundaries.pad_id,
    )


@dataclass(frozen=True)
class Prompt:
    """Token ids before a text."""

    ids: list[int]
    truncated: bool = False


def prompt_ids(
    tokenizer: Any, boundaries: Boundaries, prompts: Sequence[str] | None, count: int, max_prompt: int
) -> list[Prompt]:
    """What precedes each of `count` texts. prompts: None for texts without one."""
    if prompts is None:
        return [Prompt([boundaries.start_id, *boundaries.opening])] * count
    return [
        Prompt([boundaries.start_id, *row[:max_prompt], *boundaries.between], len(row) > max_prompt)
        for row in plain_ids(tokenizer, list(prompts))
    ]


def plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts without special tokens; "<|endoftext|>" in a text is text."""
    return tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )["input_ids"]

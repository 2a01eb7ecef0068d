"""Token ids of a corpus: each split is tokenized once; batches are taken by row number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dataset_utils.batching import TokenTable, collate, tokenize
from dataset_utils.splits import Split
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from utils.errors import UserError
from utils.records import Batch


@dataclass
class TokenSplit:
    """One split of a corpus with its token ids."""

    split: Split
    table: TokenTable
    pad_id: int
    prompts: Tensor | None = None  # (n, P) int64, what a text decoder reads beside the latents; see Latents

    def __len__(self) -> int:
        return len(self.split)

    @property
    def lengths(self) -> Tensor:
        """(n,) tokens of each text, special tokens included."""
        return torch.from_numpy(self.table.lengths).long()

    def batch(self, rows: Tensor, pad_to: int | None = None) -> Batch:
        """Rows (B,) as a batch on the CPU, padded to the longest of them, or to pad_to tokens."""
        made = collate(self.table, rows, self.pad_id, pad_to, labels=self.split.labels)
        return made if self.prompts is None else replace(made, prompt=self.prompts[rows])

    def length_sorted_batches(self, size: int, rows: Tensor | None = None) -> Iterator[tuple[Tensor, Batch]]:
        """Rows (None: all) in batches of similar length, which saves padding. Yields (rows, batch)."""
        rows = torch.arange(len(self)) if rows is None else rows
        for part in rows[self.lengths[rows].sort(stable=True).indices].split(size):
            yield part, self.batch(part)


def tokenize_split(split: Split, model: LanguageModel, max_length: int, flag: str = "--max_seq_len") -> TokenSplit:
    """Tokenize a split for a language model. UserError, which names `flag`, where the model allows no such length."""
    limit = model.max_length
    if limit is not None and max_length > limit:
        raise UserError(
            f"{flag} {max_length} is more than the {limit} tokens that {model.name} can encode: give {limit} or less"
        )
    return TokenSplit(split, tokenize(model.tokenizer, split.texts, max_length), model.pad_id)


def make_batch(space: LatentSpace, texts: Sequence[str], max_length: int) -> Batch:
    """Tokenize texts for a latent space, cut to max_length tokens each, as one batch."""
    model: Any = getattr(space, "language_model", space)  # the embedding space has its own tokenizer
    table = tokenize(model.tokenizer, texts, max_length)
    return collate(table, range(len(texts)), model.pad_id)


def tokenizer_of(space: LatentSpace) -> Any:
    """The tokenizer of a latent space: its own, or that of its language model."""
    model: Any = getattr(space, "language_model", space)
    return model.tokenizer


def tokenize_for(space: LatentSpace, split: Split, max_length: int) -> TokenSplit:
    """Tokenize a split for a latent space, each text by itself."""
    model = getattr(space, "language_model", None)
    if model is not None:
        return tokenize_split(split, model, max_length)
    embeddings: Any = space
    return TokenSplit(split, tokenize(embeddings.tokenizer, split.texts, max_length), embeddings.pad_id)

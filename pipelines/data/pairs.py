"""Token ids of pairs of a source and a text, for an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dataset_utils.batching import TokenTable, collate, tokenize
from latent_models.seq2seq import Seq2SeqLM
from utils.records import Batch


@dataclass(frozen=True)
class PairBatch:
    """Sources and texts of a batch, each padded on the right. num_special: see PairTokens."""

    source: Batch
    target: Batch
    num_special: int

    def to(self, device: torch.device | str) -> PairBatch:
        return PairBatch(self.source.to(device), self.target.to(device), self.num_special)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of Seq2SeqLM.forward."""
        source, target = self.source, self.target
        return source.input_ids, source.attention_mask, target.input_ids, target.attention_mask

    def num_targets(self) -> Tensor:
        """(B,) float: tokens of each text, and its end."""
        return (self.target.attention_mask.sum(1) - self.num_special).float()


@dataclass(frozen=True)
class PairTokens:
    """Token ids of n pairs.

    num_special: special tokens of a text beside its end, such as its start. A model predicts them without doubt: they
    do not count in a loss per token.
    """

    sources: TokenTable
    targets: TokenTable
    pad_id: int
    num_special: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def truncated(self) -> float:
        """Share of the texts that were truncated."""
        return self.targets.truncated

    def lengths(self) -> np.ndarray:
        """(n,) tokens of each source and its text together."""
        return np.asarray(self.sources.lengths) + np.asarray(self.targets.lengths)

    def target_counts(self) -> np.ndarray:
        """(n,) tokens of each text, and its end."""
        return np.asarray(self.targets.lengths) - self.num_special

    def batch(self, rows: Tensor) -> PairBatch:
        """Rows (B,) as a batch on the CPU."""
        index = rows.tolist()
        source, target = (collate(table, index, self.pad_id) for table in (self.sources, self.targets))
        return PairBatch(source, target, self.num_special)


def encode_pairs(
    lm: Seq2SeqLM, texts: Sequence[str], sources: Sequence[str], max_text: int, max_source: int
) -> PairTokens:
    """Tokenize pairs. max_text, max_source: in tokens, special ones included; what is longer is truncated."""
    num_special = lm.tokenizer.num_special_tokens_to_add(pair=False) - 1
    source_table = tokenize(lm.source_tokenizer, sources, max_source)
    return PairTokens(source_table, tokenize(lm.tokenizer, texts, max_text), lm.language_model.pad_id, num_special)

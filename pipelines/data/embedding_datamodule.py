"""Data module of the token-embedding space: nothing is cached, since the embeddings train with the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from dataset_utils.batching import tokenize
from dataset_utils.corpus import Corpus
from dataset_utils.packing import pack_blocks, pack_pairs
from dataset_utils.splits import Split
from latent_models.spaces.embeddings import EmbeddingSpace
from latent_models.spaces.length_prior import count_pairs
from latent_models.spaces.normalization import NormalizedSpace, count_lengths
from latent_models.tokenizers.special_ids import end_id, separator_id
from pipelines.builders.embeddings import embedding_metadata, save_embeddings
from pipelines.cli.configs import DiffusionConfig
from pipelines.data.tokens import TokenSplit
from pipelines.run_context import RunContext


class EmbeddingDataModule:
    """See DataModule."""

    def __init__(
        self, run: RunContext[DiffusionConfig], corpus: Corpus, space: NormalizedSpace, seq2seq: bool = False
    ) -> None:
        """seq2seq: each source stands before its text, in one sequence."""
        self.run, self.seq2seq, self.statistics = run, seq2seq, space.statistics
        self.space = cast(EmbeddingSpace, space.space)
        self.tokenizer = self.space.tokenizer
        self.tokens = {"train": self.tokenize(corpus.train), "valid": self.tokenize(corpus.valid)}

    def tokenize(self, split: Split) -> TokenSplit:
        """Texts by themselves, pairs as one sequence, or with --pretrain_blocks running text in blocks."""
        settings, tokenizer, length = self.run.settings, self.space.tokenizer, self.space.length
        if settings.config.packing.pretrain_blocks:
            table = pack_blocks(tokenizer, split.all_texts(), length)
            split = Split([""] * len(table))  # a block is no text of the corpus
        elif self.seq2seq:
            assert split.sources is not None, "a run of pairs was built on a corpus without sources"
            end, separator = end_id(tokenizer), separator_id(tokenizer)
            assert end is not None and separator is not None, "the space refuses a tokenizer without an end"
            table = pack_pairs(
                tokenizer,
                split.sources,
                split.texts,
                length,
                end_id=end,
                separator_id=separator,
                truncate=settings.config.packing.truncate_sources,
            )
        else:
            table = tokenize(tokenizer, split.texts, length)
        return TokenSplit(split, table, self.space.pad_id)

    def save_artifacts(self, folder: Path) -> None:
        save_embeddings(self.space, folder)

    def metadata(self, folder: Path) -> dict[str, Any]:
        return embedding_metadata(self.space)

    def setup(self, *, estimate_stats: bool) -> None:
        if not (estimate_stats and self.space.variable_length):
            return
        tokens, counts = self.tokens["train"], self.statistics.pair_counts
        known = tokens.table.prefix_lengths
        source_lengths = torch.zeros(len(tokens)) if known is None else torch.from_numpy(known)
        text_lengths = tokens.lengths - source_lengths.long()
        self.statistics.length_counts.copy_(count_lengths(text_lengths, self.space.length))
        if counts is not None:
            counts.copy_(count_pairs(source_lengths, text_lengths, counts.shape))

"""The space of token embeddings in diffusion training: nothing is cached, and the space trains with the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dataset_utils.batching import tokenize
from dataset_utils.corpus import Corpus
from dataset_utils.packing import pack_blocks, pack_pairs
from dataset_utils.splits import Split
from latent_models.embeddings import EmbeddingSpace
from latent_models.normalisation import count_lengths
from latent_models.pair_lengths import count_pairs
from latent_models.tokenizers.identity import end_id, separator_id
from pipelines.building.embeddings import embedding_facts, keep_embeddings
from pipelines.data.tokens import TokenSplit
from pipelines.flags.options import EmbeddingLossOptions
from pipelines.job import Job
from pipelines.parts import Parts
from pipelines.training.embedding_loss import EmbeddingLoss
from pipelines.training.embedding_step import EmbeddingStep
from pipelines.training.teacher import Teacher
from pipelines.training.training_times import TrainingTimes


class EmbeddingSupply:
    """See Supply."""

    def __init__(self, job: Job, parts: Parts, corpus: Corpus) -> None:
        self.job, self.parts, self.times = job, parts, TrainingTimes(parts.process, job.ranks)
        self.teacher: Teacher | None = None
        self.space = cast(EmbeddingSpace, parts.space.space)
        self.tokenizer = self.space.tokenizer
        self.splits = {"train": self.tokens(corpus.train), "valid": self.tokens(corpus.valid)}
        self.data = self.splits["train"]
        self.loss = EmbeddingLoss(
            parts.model.denoiser,
            self.space,
            parts.process,
            parts.model.absorbing,
            job.settings.denoise_rate if job.settings.denoise else 0.0,
        )

    def tokens(self, split: Split) -> TokenSplit:
        """Texts by themselves, pairs as one sequence, or with --unlabelled running text in blocks."""
        settings, tokenizer, length = self.job.settings, self.space.tokenizer, self.space.length
        if settings.unlabelled:
            table = pack_blocks(tokenizer, split.all_texts(), length)
            split = Split([""] * len(table))  # a block is no text of the corpus
        elif self.parts.seq2seq:
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
                trim=settings.trim_sources,
            )
        else:
            table = tokenize(tokenizer, split.texts, length)
        return TokenSplit(split, table, self.space.pad_id)

    def keep(self, folder: Path) -> None:
        keep_embeddings(self.space, folder)

    def facts(self, folder: Path) -> dict[str, Any]:
        return embedding_facts(self.space)

    def open(self, *, measure: bool) -> None:
        if measure and self.space.masked:
            table = self.data.table
            given = torch.zeros(len(table)) if table.given is None else torch.from_numpy(table.given)
            statistics, written = self.parts.model.statistics, self.data.lengths - given.long()
            statistics.length_counts.copy_(count_lengths(written, self.space.length))
            if statistics.pair_counts is not None:
                statistics.pair_counts.copy_(count_pairs(given, written, statistics.pair_counts.shape))

    def network(self) -> nn.Module:
        return self.loss

    def step(self, network: nn.Module, split: str) -> EmbeddingStep:
        settings = self.job.settings
        return EmbeddingStep(
            network,
            self.loss,
            self.splits[split],
            self.job.plan() if split == "train" else self.job.held_out_plan(len(self.splits[split])),
            settings.num_train_steps,
            settings.build(EmbeddingLossOptions),
            device=self.job.device,
            self_condition=settings.self_condition,
            class_conditional=settings.class_conditional,
            reg_rate=settings.reg_rate,
            times=self.times if split == "train" else None,
            prefix_share=settings.prefix_share if settings.unlabelled else None,
        )

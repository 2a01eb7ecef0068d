"""The space of token embeddings in diffusion training: nothing is cached, and the space trains with the denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn

from dataset_utils.batching import tokenize
from dataset_utils.corpus import Corpus, Split
from latent_models.embeddings import EmbeddingSpace
from latent_models.normalisation import count_lengths
from pipelines.embedding_loss import EmbeddingLoss
from pipelines.embedding_parts import embedding_facts, keep_embeddings
from pipelines.embedding_step import EmbeddingStep
from pipelines.job import Job
from pipelines.options import EmbeddingLossOptions
from pipelines.parts import Parts
from pipelines.tokens import TokenSplit
from utils.hooks import Hook


class EmbeddingSupply:
    """See Supply."""

    def __init__(self, job: Job, parts: Parts, corpus: Corpus) -> None:
        self.job, self.parts = job, parts
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
        return TokenSplit(split, tokenize(self.space.tokenizer, split.texts, self.space.length), self.space.pad_id)

    def keep(self, folder: Path) -> None:
        keep_embeddings(self.space, folder)

    def facts(self, folder: Path) -> dict[str, Any]:
        return embedding_facts(self.space)

    def open(self, *, measure: bool) -> None:
        if measure and self.space.masked:
            counts = count_lengths(self.data.lengths, self.space.length)
            self.parts.model.statistics.length_counts.copy_(counts)

    def network(self) -> nn.Module:
        return self.loss

    def step(self, network: nn.Module, split: str) -> EmbeddingStep:
        settings = self.job.settings
        return EmbeddingStep(
            network,
            self.loss,
            self.splits[split],
            self.job.plan(),
            settings.num_train_steps,
            settings.build(EmbeddingLossOptions),
            device=self.job.device,
            self_condition=settings.self_condition,
            class_conditional=settings.class_conditional,
            reg_rate=settings.reg_rate,
        )

    def hooks(self) -> list[Hook]:
        return []

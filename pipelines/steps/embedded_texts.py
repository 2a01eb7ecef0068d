"""The texts of a split in the embeddings of a teacher, which its student keeps: what a DistillationStep reads."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_models.spaces.normalization import NormalizedSpace
from pipelines.data.tokens import TokenSplit
from pipelines.sampling.inputs import PackedSources
from pipelines.steps.embeddings import TokenReader
from utils.records import Condition, KnownPositions, Latents
from utils.seeding import StepRNG


class EmbeddedTexts:
    """(rows, draws) -> clean latents, classes and known positions, as in the training of the teacher."""

    def __init__(
        self, space: NormalizedSpace, read: TokenReader, class_conditional: bool, sources: PackedSources | None
    ) -> None:
        """sources: how the sources of pairs are packed; None: texts, or blocks of running text."""
        self.space, self.read_tokens, self.class_conditional, self.sources = space, read, class_conditional, sources
        self.device = read.device

    @property
    def tokens(self) -> TokenSplit:
        return self.read_tokens.data

    def __len__(self) -> int:
        return len(self.tokens)

    def __call__(self, rows: Tensor) -> tuple[Latents, Condition | None]:
        raise NotImplementedError("embeddings need the random numbers of a step: call read")

    @torch.no_grad()
    def read(self, rows: Tensor, draws: StepRNG) -> tuple[Latents, Condition | None, KnownPositions | None]:
        embeddings, batch = self.read_tokens.space, self.read_tokens(rows, draws)
        clean = self.space.encode(batch)
        known = None
        if batch.known_mask is not None:
            known = (
                embeddings.known_positions(batch, clean) if self.sources is None else self.sources.known(batch, clean)
            )
        # part of the seed: renaming it would change the noise
        clean = embeddings.add_sigma0_noise(clean, draws.normal("spread", embeddings.length, embeddings.dim))
        condition = None
        if self.class_conditional:
            assert batch.class_id is not None, "a class-conditional run was built on a corpus without labels"
            condition = Condition.of(class_id=batch.class_id)
        return clean, condition, known

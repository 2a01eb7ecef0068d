"""Training step of a language model without latents: next-token prediction of texts, given their prompts or sources."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.data.batch_sampler import BatchSampler
from pipelines.steps.describe import describe_rows


class TrainingTexts(Protocol):
    """Token ids of a split: latent_models.causal.sequences.Sequences, or pipelines.data.pairs.PairTokens."""

    def __len__(self) -> int: ...

    def lengths(self) -> np.ndarray:
        """(n,) tokens that a model reads of each text, with its prompt or source."""

    def target_counts(self) -> np.ndarray:
        """(n,) tokens of each text that count in the loss."""

    @property
    def truncated(self) -> float:
        """Share of the texts that were truncated."""

    def batch(self, rows: Tensor) -> Any:
        """Rows (B,) on the CPU: a batch with `to`, `inputs` (arguments of the model) and `num_targets`."""


class LanguageModelStep:
    """(step, micro) -> losses (B,) in nats per token, and no values to log.

    The loss of a text is its negative log-likelihood over the mean number of tokens of a training text. So every token
    has the same weight, whatever the length of its text and however the batch is split: maximum likelihood. Over the
    mean of its step, whose texts have about one length, short texts would count more.
    """

    def __init__(
        self, model: nn.Module, data: TrainingTexts, batch_sampler: BatchSampler, device: torch.device
    ) -> None:
        """model: gives the negative log-likelihood (B,) of a batch, wrapped in DDP or not."""
        self.model, self.data, self.batch_sampler, self.device = model, data, batch_sampler, device
        self.mean_tokens = float(data.target_counts().mean())

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.data), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.data.batch(self.batch_sampler.rows(step, micro, len(self.data))).to(self.device)
        return self.model(*batch.inputs) / self.mean_tokens, {}

    def totals(self, micro: int) -> dict[str, Tensor]:
        """nll (B,), in nats, and tokens (B,) of each text: their sums give nats per token."""
        batch = self.data.batch(self.batch_sampler.rows(0, micro, len(self.data)))
        tokens = batch.num_targets().to(self.device)
        return {"nll": self.model(*batch.to(self.device).inputs), "tokens": tokens}

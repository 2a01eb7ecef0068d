"""Training step of a causal language model: next-token prediction of texts, given their prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_models.causal.sequences import Sequences
from pipelines.data.batch_sampler import BatchSampler
from pipelines.steps.describe import describe_rows


class CausalLMStep:
    """(step, micro) -> losses (B,) in nats per token, and no values to log.

    The loss of a text is its negative log-likelihood over the mean number of tokens of a training text. So every token
    has the same weight, whatever the length of its text and however the batch is split: maximum likelihood.
    """

    def __init__(
        self, model: nn.Module, data: Sequences, batch_sampler: BatchSampler, device: torch.device, tokens: float
    ) -> None:
        """model: a CausalLM, wrapped in DDP or not. tokens: mean number of tokens of a training text."""
        self.model, self.data, self.batch_sampler, self.device = model, data, batch_sampler, device
        self.tokens = tokens

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.data), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.data.batch(self.batch_sampler.rows(step, micro, len(self.data))).to(self.device)
        return self.model(batch.input_ids, batch.targets) / self.tokens, {}

    def totals(self, micro: int) -> dict[str, Tensor]:
        """nll (B,), in nats, and tokens (B,) of each text: their sums give nats per token."""
        batch = self.data.batch(self.batch_sampler.rows(0, micro, len(self.data)))
        counts = torch.zeros(batch.input_ids.numel()).index_fill_(0, batch.targets, 1.0)
        batch, tokens = batch.to(self.device), counts.view(batch.input_ids.shape).sum(1)
        return {"nll": self.model(batch.input_ids, batch.targets), "tokens": tokens.to(self.device)}

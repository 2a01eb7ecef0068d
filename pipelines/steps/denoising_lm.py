"""Stage 0: a batch of texts, partly hidden from the encoder, to the loss of writing them out whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_models.options import PretrainingOptions
from latent_models.pretraining.corruption import random_tokens, mask_spans
from latent_models.tokenizers.training import SPECIAL
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.tokens import TokenSplit

MEAN_SPAN = 3.0  # tokens, as in BART


class DenoisingLMStep:
    """(step, micro) -> losses (B,) in nats per token, and values to log."""

    def __init__(
        self,
        model: nn.Module,
        data: TokenSplit,
        options: PretrainingOptions,
        batch_sampler: BatchSampler,
        device: torch.device,
        mask_id: int,
        vocab_size: int,
    ) -> None:
        """model: a LanguageModel, or the wrapper that averages its gradients over ranks."""
        self.model, self.data, self.options, self.batch_sampler, self.device = (
            model,
            data,
            options,
            batch_sampler,
            device,
        )
        self.mask_id, self.vocab_size = mask_id, vocab_size

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        o, special = self.options, len(SPECIAL)
        batch = self.data.batch(self.batch_sampler.rows(step, micro, len(self.data)))
        ids, mask = batch.input_ids, batch.attention_mask
        draws = self.batch_sampler.rng(step, micro)
        T = ids.shape[1]
        # numbers for the longest text allowed, so that they do not depend on how the batch was split and padded
        random = random_tokens(ids, special, self.vocab_size, draws.uniform("tokens", o.max_seq_len)[:, :T])
        spans = draws.uniform("spans", 2, o.max_seq_len)[:, :, :T].transpose(0, 1)
        drilled = draws.uniform("drill", 1) < o.random_token_prob
        labels = torch.where(drilled, random, ids)
        hidden = mask_spans(labels, mask, special, self.mask_id, o.mask_prob, MEAN_SPAN, spans)
        seen = torch.where(drilled | (draws.uniform("clean", 1) < o.uncorrupted_prob), labels, hidden)
        return self.model(seen.to(self.device), labels.to(self.device), mask.to(self.device)), {}

"""Training step of stage 0: text infilling, the denoising objective of BART.

Lewis et al. 2020, arXiv:1910.13461: the encoder input is a text with masked spans, the target is the whole text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_models.pretraining.corruption import mask_spans, random_tokens
from latent_models.pretraining.options import PretrainingOptions
from latent_models.tokenizers.training import SPECIAL
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.tokens import TokenSplit
from pipelines.steps.describe import describe_rows

MEAN_SPAN = 3.0  # tokens, as in BART


class DenoisingLMStep:
    """(step, micro) -> losses (b,) in nats per token, and no values to log."""

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
        """model: a LanguageModel, wrapped in DDP or not. mask_id: token id that replaces a masked span."""
        self.model, self.data, self.options = model, data, options
        self.batch_sampler, self.device = batch_sampler, device
        self.mask_id, self.vocab_size = mask_id, vocab_size

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.data), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        options, special = self.options, len(SPECIAL)
        batch = self.data.batch(self.batch_sampler.rows(step, micro, len(self.data)))
        ids, mask = batch.input_ids, batch.attention_mask
        rng = self.batch_sampler.rng(step, micro)
        length = ids.shape[1]
        # drawn for max_seq_len positions, so that they do not depend on how the batch was split and padded
        random = random_tokens(ids, special, self.vocab_size, rng.uniform("tokens", options.max_seq_len)[:, :length])
        spans = rng.uniform("spans", 2, options.max_seq_len)[:, :, :length].transpose(0, 1)
        is_random = rng.uniform("drill", 1) < options.random_token_prob
        labels = torch.where(is_random, random, ids)
        masked = mask_spans(labels, mask, special, self.mask_id, options.mask_prob, MEAN_SPAN, spans)
        is_uncorrupted = is_random | (rng.uniform("clean", 1) < options.uncorrupted_prob)
        inputs = torch.where(is_uncorrupted, labels, masked)
        return self.model(inputs.to(self.device), labels.to(self.device), mask.to(self.device)), {}

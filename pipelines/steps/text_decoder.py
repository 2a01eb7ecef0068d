"""Training step of a text decoder: the latents of a text, noised, to the loss of the text.

z = sqrt(1 - sigma^2) x0 + sigma eps        sigma uniform in [0, --max_latent_noise]; 1 for texts without latents
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.sequences import CausalBatch, Sequences
from latent_models.spaces.base import LatentSpace
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.length_buckets import LengthBuckets
from pipelines.steps.describe import describe_rows
from utils.records import Latents
from utils.seeding import StepRNG

ReadLatents = Callable[[Tensor], Latents]  # rows (B,) -> their scaled latents, on the device
# (x0, rng, mask, rows) -> the latents that a denoiser makes of them; see DenoiserAugmentation
Denoiser = Callable[[Tensor, StepRNG, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class DecoderAugmentation:
    """What happens to latents and tokens before the decoder reads them."""

    options: TextDecoderOptions
    denoiser: Denoiser | None = None
    denoiser_prob: float = 0.8
    """Share of the texts whose latents come from the denoiser."""

    def levels(self, rng: StepRNG) -> Tensor:
        """(B,) sigma of each text. Strings are part of the seed: renaming them would change all random numbers."""
        sigma = self.options.max_latent_noise * rng.uniform("decoder_noise_size")
        without = rng.select_mask("decoder_without_latents", self.options.latent_dropout)
        return torch.where(without, torch.ones_like(sigma), sigma)

    def clean(self, x0: Tensor, rng: StepRNG, mask: Tensor | None, rows: Tensor) -> Tensor:
        """x0 (B, L, D), or, for a share of the texts, what the denoiser makes of it. rows: (B,), their numbers."""
        if self.denoiser is None:
            return x0
        chosen = rng.select_mask("decoder_imagined_rows", self.denoiser_prob)
        return torch.where(chosen[:, None, None], self.denoiser(x0, rng, mask, rows), x0)

    def without_source(self, rng: StepRNG) -> Tensor | None:
        """(B,) bool, texts whose source is left out; None without sources or source dropout."""
        rate = self.options.source_dropout if self.options.source_prompt else 0.0
        return rng.select_mask("decoder_without_source", rate) if rate else None

    def hidden(self, rng: StepRNG, width: int, longest: int) -> Tensor | None:
        """(B, T) bool, input tokens that are hidden; None without token dropout. width: T.

        longest: tokens of the longest sequence of all. Numbers are drawn for so many, so that those of a text do not
        depend on the texts that it is batched with.
        """
        rate = self.options.token_dropout
        return rng.uniform("decoder_token_dropout", longest)[:, :width] < rate if rate else None


def noised(x0: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
    """sqrt(1 - sigma^2) x0 + sigma eps: (B, L, D), (B,), (B, L, D) -> (B, L, D)."""
    sigma = sigma[:, None, None]
    return (1 - sigma**2).sqrt() * x0 + sigma * eps


class DecoderNetwork(nn.Module):
    """All that trains, as one module that DDP can wrap: token ids or latents -> nats of each text."""

    def __init__(self, decoder: nn.Module, encode: LatentSpace | None = None) -> None:
        """encode: a space whose pooling trains, so that its latents are made at every step."""
        super().__init__()
        self.decoder, self.encode = decoder, encode

    def forward(
        self,
        source: Any,
        change: Callable[[Tensor], Tensor],
        mask: Tensor | None,
        sigma: Tensor,
        eps: Callable[[Tensor], Tensor],
        batch: CausalBatch,
        hidden: Tensor | None,
    ) -> Tensor:
        """(B,) nats. source: Latents, or a Batch of tokens for `encode`. change, eps: functions of x0 (B, L, D)."""
        latents = source if self.encode is None else self.encode.encode(source)
        z = noised(change(latents.x0), sigma, eps(latents.x0))
        mask = mask if self.encode is None else (latents.mask if self.encode.variable_length else None)
        nll: Tensor = self.decoder(z, sigma, batch.input_ids, batch.targets, mask, hidden)
        return nll


class TextDecoderStep:
    """(step, micro) -> losses (B,) in nats per token, and no values to log.

    The loss of a text is its negative log-likelihood over the mean number of tokens of the texts of this step, over all
    ranks and micro-batches. So every token of a step counts the same, however its batch is split, and steps of long
    texts, which come together, are no larger than others.
    """

    def __init__(
        self,
        network: nn.Module,
        read: Callable[[Tensor], Any],
        data: Sequences,
        batch_sampler: BatchSampler,
        device: torch.device,
        *,
        augmentation: DecoderAugmentation,
        variable_length: bool,
    ) -> None:
        """network: a DecoderNetwork, wrapped in DDP or not. read: rows (B,) -> what the network encodes, or latents.

        batch_sampler: LengthBuckets for training.
        """
        self.network, self.read, self.data, self.batch_sampler = network, read, data, batch_sampler
        self.device, self.augmentation, self.variable_length = device, augmentation, variable_length
        self.counts, self.longest = data.target_counts(), int(data.lengths().max())

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.data), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.batch_sampler.rows(step, micro, len(self.data))
        rng = self.batch_sampler.rng(step, micro, self.device)
        without_source = self.augmentation.without_source(self.batch_sampler.rng(step, micro, torch.device("cpu")))
        batch, source = self.data.batch(rows, without_source).to(self.device), self.read(rows)
        mask = source.mask if self.variable_length and isinstance(source, Latents) else None
        nll = self.network(
            source,
            lambda x0: self.augmentation.clean(x0, rng, mask, rows),
            mask,
            self.augmentation.levels(rng),
            lambda x0: rng.normal("decoder_noise", *x0.shape[1:]),
            batch,
            self.augmentation.hidden(rng, batch.input_ids.shape[1], self.longest),
        )
        assert isinstance(self.batch_sampler, LengthBuckets), "training batches of similar lengths"
        of_step = self.batch_sampler.rows_of_step(step, len(self.data))
        return nll / float(self.counts[of_step.numpy()].mean()), {}

    def totals(self, micro: int, levels: dict[str, float]) -> dict[str, Tensor]:
        """Nats (B,) of each text by the name of a noise level, and tokens (B,): their sums give nats per token."""
        rows = self.batch_sampler.rows(0, micro, len(self.data))
        rng = self.batch_sampler.rng(0, micro, self.device)
        batch, source = self.data.batch(rows), self.read(rows)
        counts = torch.zeros(batch.input_ids.numel()).index_fill_(0, batch.targets, 1.0)
        found = {"tokens": counts.view(batch.input_ids.shape).sum(1).to(self.device)}
        batch = batch.to(self.device)
        mask = source.mask if self.variable_length and isinstance(source, Latents) else None
        for name, sigma in levels.items():
            level = torch.full((len(rows),), sigma, device=self.device)
            found[name] = self.network(
                source,
                lambda x0: x0,
                mask,
                level,
                lambda x0: rng.normal("decoder_noise", *x0.shape[1:]),
                batch,
                None,
            )
        return found

"""Training step of stage 1: a batch of texts to the loss of reconstructing them from their latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_models.spaces.compressed import CompressedSpace
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.cached_latents import EncodedSplit
from pipelines.data.tokens import TokenSplit
from pipelines.steps.denoiser_augmentation import DenoiserAugmentation
from pipelines.steps.describe import describe_rows
from utils.seeding import StepRNG


@dataclass(frozen=True)
class LatentAugmentation:
    """Augmentation of latents before they are decoded, for a decoder that is robust to the errors of sampling.

    The latents of a text get noise, or are replaced by those of a denoiser that starts from them, or both, or neither.
    """

    max_noise: float = 0.0
    """Largest sigma of the noise. A text that gets noise has a sigma that is uniform between 0 and this."""
    noise_prob: float = 0.5
    """Share of the texts that get noise."""
    denoiser: DenoiserAugmentation | None = None
    denoiser_prob: float = 0.8
    """Share of the texts whose latents come from the denoiser."""

    def __bool__(self) -> bool:
        return bool(self.max_noise) or self.denoiser is not None

    @property
    def clean_fraction(self) -> float:
        """Expected share of the texts that are not augmented.

        The expectation, not the count, normalizes loss_clean_latents: it is the same for every micro-batch, so that
        their means add up.
        """
        has_noise, has_denoiser = bool(self.max_noise), self.denoiser is not None
        return (1 - has_noise * self.noise_prob) * (1 - has_denoiser * self.denoiser_prob)

    def sample(self, space: CompressedSpace, rng: StepRNG, device: torch.device) -> AugmentedBatch:
        """Choose the texts of a batch that are augmented."""
        return AugmentedBatch(self, space, rng, device)


class AugmentedBatch:
    """The augmentation of one batch: latents (B, L, D) -> latents (B, L, D).

    clean_mask: (B,) bool, True for texts that are not augmented.
    """

    def __init__(
        self, augmentation: LatentAugmentation, space: CompressedSpace, rng: StepRNG, device: torch.device
    ) -> None:
        self.augmentation, self.space, self.rng = augmentation, space, rng
        none = torch.zeros(len(rng), dtype=torch.bool, device=device)
        by_denoiser, max_noise = augmentation.denoiser, augmentation.max_noise
        # strings are part of the seed: renaming them would change all random numbers
        self.denoised = none if by_denoiser is None else rng.select_mask("imagined_rows", augmentation.denoiser_prob)
        self.noised = rng.select_mask("latent_noise", augmentation.noise_prob) if max_noise else none
        self.clean_mask = ~(self.denoised | self.noised)

    def __call__(self, x0: Tensor) -> Tensor:
        augmentation, rng = self.augmentation, self.rng
        if augmentation.denoiser is not None:
            x0 = torch.where(self.denoised[:, None, None], augmentation.denoiser(x0, rng), x0)
        if augmentation.max_noise:
            sigma = augmentation.max_noise * rng.uniform("latent_noise_size") * self.noised
            x0 = self.space.add_latent_noise(x0, rng.normal("latent_noise", *x0.shape[1:]), sigma)
        return x0


class AutoencoderStep:
    """(step, micro) -> losses (b,) in nats per token, and values (b,) to log: each loss, if there are several."""

    def __init__(
        self,
        space: CompressedSpace,
        data: TokenSplit,
        batch_sampler: BatchSampler,
        device: torch.device,
        *,
        wrapped: nn.Module | None = None,
        augmentation: LatentAugmentation | None = None,
        pad_to: int | None = None,
        states: EncodedSplit | None = None,
    ) -> None:
        """wrapped: the space in DDP, which averages its gradients over ranks; None: the space itself.

        augmentation: changes latents before they are decoded; None: no augmentation.
        pad_to: length in tokens to which every batch is padded, for a compiled network; None: its longest text.
        states: cached states of the frozen encoder, for every text of the data.
        """
        self.space, self.data, self.batch_sampler, self.device = space, data, batch_sampler, device
        self.wrapped, self.augmentation = space if wrapped is None else wrapped, augmentation or LatentAugmentation()
        self.pad_to, self.states = pad_to, states

    def describe(self, step: int, micro: int, positions: list[int]) -> str:
        return describe_rows(self.batch_sampler, len(self.data), step, micro, positions)

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.batch_sampler.rows(step, micro, len(self.data))
        batch, states = self.data.batch(rows, self.pad_to), None
        if self.states is not None:
            states = self.states(rows).x0[:, : batch.input_ids.shape[1]]
        batch = batch.to(self.device)
        augment = None
        if self.augmentation:
            rng = self.batch_sampler.rng(step, micro, self.device)
            augment = self.augmentation.sample(self.space, rng, self.device)
        by_name = self.wrapped(batch, augment, states)
        losses = self.space.total_loss(by_name)
        logged = {name: loss.detach() for name, loss in by_name.items()} if len(by_name) > 1 else {}
        if augment is not None:
            clean_fraction = max(self.augmentation.clean_fraction, 1e-9)
            logged["loss_clean_latents"] = losses.detach() * augment.clean_mask / clean_fraction
        return losses, logged

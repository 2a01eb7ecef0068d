"""Stage 1: a batch of texts to the loss of writing them out again from their latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latent_models.spaces.compressed import CompressedSpace
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.cached_latents import EncodedSplit
from pipelines.data.tokens import TokenSplit
from pipelines.steps.denoiser_augmentation import DenoiserAugmentation
from utils.seeding import StepRNG


@dataclass(frozen=True)
class LatentAugmentation:
    """What a decoder's latents go through before it reads them, so that it forgives what diffusion gets wrong."""

    noise: float = 0.0
    """Largest sigma of the noise that a share noise_prob of the texts get on their latents; its size is uniform."""
    noise_prob: float = 0.5
    imagined: DenoiserAugmentation | None = None
    """A share imagined_prob of the texts get the latents that a denoiser makes of theirs."""
    imagined_prob: float = 0.8

    def __bool__(self) -> bool:
        return bool(self.noise) or self.imagined is not None

    @property
    def clean_fraction(self) -> float:
        """Of the texts, as they are drawn; the same for every micro-batch, so that their means add up."""
        noised, imagined = bool(self.noise), self.imagined is not None
        return (1 - noised * self.noise_prob) * (1 - imagined * self.imagined_prob)

    def of(self, space: CompressedSpace, draws: StepRNG, device: torch.device) -> AugmentedBatch:
        return AugmentedBatch(self, space, draws, device)


class AugmentedBatch:
    """One batch of latents, disturbed. untouched: (B,) bool, the texts whose latents stay what they are."""

    def __init__(self, how: LatentAugmentation, space: CompressedSpace, draws: StepRNG, device: torch.device) -> None:
        self.how, self.space, self.draws = how, space, draws
        none = torch.zeros(len(draws), dtype=torch.bool, device=device)
        self.imagined = none if how.imagined is None else draws.select_mask("imagined_rows", how.imagined_prob)
        self.noised = draws.select_mask("latent_noise", how.noise_prob) if how.noise else none
        self.clean_mask = ~(self.imagined | self.noised)

    def __call__(self, x0: Tensor) -> Tensor:
        how, draws = self.how, self.draws
        if how.imagined is not None:
            x0 = torch.where(self.imagined[:, None, None], how.imagined(x0, draws), x0)
        if how.noise:
            sigma = how.noise * draws.uniform("latent_noise_size") * self.noised
            x0 = self.space.add_latent_noise(x0, draws.normal("latent_noise", *x0.shape[1:]), sigma)
        return x0


class AutoencoderStep:
    """(step, micro) -> losses (B,) in nats per token, and values to log."""

    def __init__(
        self,
        space: CompressedSpace,
        data: TokenSplit,
        batch_sampler: BatchSampler,
        device: torch.device,
        *,
        wrapped: nn.Module | None = None,
        disturbance: LatentAugmentation | None = None,
        pad_to: int | None = None,
        states: EncodedSplit | None = None,
    ) -> None:
        """wrapped: the space in the wrapper that averages its gradients over ranks; None: the space itself.

        disturbance: of the latents, before they are decoded.
        pad_to: tokens that every batch is padded to, for a compiled network; None: to the longest of its texts.
        states: the frozen encoder's states of every text, where they are cached.
        """
        self.space, self.data, self.batch_sampler, self.device = space, data, batch_sampler, device
        self.wrapped, self.disturbance = space if wrapped is None else wrapped, disturbance or LatentAugmentation()
        self.pad_to, self.states = pad_to, states

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.batch_sampler.rows(step, micro, len(self.data))
        batch, states = self.data.batch(rows, self.pad_to), None
        if self.states is not None:
            states = self.states(rows).x0[:, : batch.input_ids.shape[1]]
        batch = batch.to(self.device)
        if not self.disturbance:
            return self.wrapped(batch, states=states), {}
        disturbed = self.disturbance.of(self.space, self.batch_sampler.draws(step, micro, self.device), self.device)
        losses = self.wrapped(batch, disturbed, states)
        clean = losses.detach() * disturbed.clean_mask / max(self.disturbance.clean_fraction, 1e-9)
        return losses, {"loss_clean_latents": clean}

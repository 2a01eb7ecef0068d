"""Training step of stage 1: a batch of texts to the loss of reconstructing them from their latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latent_models.autoencoders.augmentations import DrawnAugmentation
from latent_models.spaces.compressed import CompressedSpace
from pipelines.data.batch_sampler import BatchSampler
from pipelines.data.cached_latents import EncodedSplit
from pipelines.data.tokens import TokenSplit
from pipelines.steps.denoiser_augmentation import DenoiserAugmentation
from pipelines.steps.describe import describe_rows
from utils.seeding import StepRNG


@dataclass(frozen=True)
class LatentAugmentation:
    """Augmentation of a batch, for latents and a decoder that are robust to the errors of sampling.

    The latents of a text get noise, or are replaced by those of a denoiser that starts from them, or both, or neither.
    """

    max_noise: float = 0.0
    """Largest sigma of the noise. A text that gets noise has a sigma that is uniform between 0 and this."""
    noise_prob: float = 0.5
    """Share of the texts that get noise."""
    denoiser: DenoiserAugmentation | None = None
    denoiser_prob: float = 0.8
    """Share of the texts whose latents come from the denoiser."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Strength of each row of AUGMENTATIONS that is on, by name."""
    variational: bool = False
    """Whether latents are drawn from distributions (--kl_weight)."""

    def __bool__(self) -> bool:
        return self.changes_latents or bool(self.strengths) or self.variational

    @property
    def changes_latents(self) -> bool:
        """Whether some texts of a batch have noised or replaced latents, and others do not."""
        return bool(self.max_noise) or self.denoiser is not None

    @property
    def clean_fraction(self) -> float:
        """Expected share of the texts that are not augmented.

        The expectation, not the count, normalizes loss_clean_latents: it is the same for every micro-batch, so that
        their means add up.
        """
        has_noise, has_denoiser = bool(self.max_noise), self.denoiser is not None
        return (1 - has_noise * self.noise_prob) * (1 - has_denoiser * self.denoiser_prob)

    def sample(
        self, space: CompressedSpace, rng: StepRNG, device: torch.device, rows: Tensor | None = None
    ) -> AugmentedBatch:
        """Choose the texts of a batch that are augmented. rows: (B,), the texts by number, for their conditions."""
        return AugmentedBatch(self, space, rng, device, rows)


class AugmentedBatch(DrawnAugmentation):
    """The augmentation of one batch.

    clean_mask: (B,) bool, True for texts whose latents are neither noised nor replaced. sigma: (B,), noise of the
    latents.
    """

    def __init__(
        self,
        augmentation: LatentAugmentation,
        space: CompressedSpace,
        rng: StepRNG,
        device: torch.device,
        rows: Tensor | None = None,
    ) -> None:
        super().__init__(augmentation.strengths, rng, space.autoencoder.max_seq_len, space.length)
        self.augmentation, self.space, self.rows = augmentation, space, rows
        none = torch.zeros(len(rng), dtype=torch.bool, device=device)
        by_denoiser, max_noise = augmentation.denoiser, augmentation.max_noise
        # strings are part of the seed: renaming them would change all random numbers
        self.denoised = none if by_denoiser is None else rng.select_mask("imagined_rows", augmentation.denoiser_prob)
        self.noised = rng.select_mask("latent_noise", augmentation.noise_prob) if max_noise else none
        self.clean_mask = ~(self.denoised | self.noised)
        if max_noise:
            self.sigma = max_noise * rng.uniform("latent_noise_size") * self.noised

    def __call__(self, x0: Tensor, mask: Tensor | None = None) -> Tensor:
        denoiser, rng = self.augmentation.denoiser, self.rng
        if denoiser is not None:
            x0 = torch.where(self.denoised[:, None, None], denoiser(x0, rng, mask, self.rows), x0)
        if self.sigma is not None:
            shape = (self.num_latents, *x0.shape[2:])  # of all positions, whatever the padding of this batch
            noise = rng.normal("latent_noise", *shape)[:, : x0.shape[1]]
            x0 = self.space.add_latent_noise(x0, noise, self.sigma, mask)
        return super().__call__(x0, mask)


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
        targets: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """wrapped: the space in DDP, which averages its gradients over ranks; None: the space itself.

        augmentation: changes latents before they are decoded; None: no augmentation.
        pad_to: length in tokens to which every batch is padded, for a compiled network; None: its longest text.
        states: cached states of the frozen encoder, for every text of the data. targets: rows (b,) -> features (b, d)
        with which latents are aligned.
        """
        self.space, self.data, self.batch_sampler, self.device = space, data, batch_sampler, device
        self.wrapped, self.augmentation = space if wrapped is None else wrapped, augmentation or LatentAugmentation()
        self.pad_to, self.states, self.targets = pad_to, states, targets

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
            augment = self.augmentation.sample(self.space, rng, self.device, rows)
        target = None if self.targets is None else self.targets(rows)
        by_name = self.wrapped(batch, augment, states, target)
        losses = self.space.total_loss(by_name)
        logged = {name: loss.detach() for name, loss in by_name.items()} if len(by_name) > 1 else {}
        if augment is not None and self.augmentation.changes_latents:
            clean_fraction = max(self.augmentation.clean_fraction, 1e-9)
            logged["loss_clean_latents"] = losses.detach() * augment.clean_mask / clean_fraction
        return losses, logged

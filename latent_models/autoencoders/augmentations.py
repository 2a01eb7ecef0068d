"""Augmentations: changes of a training batch on its way through an autoencoder, so that its latents and its decoder
bear the errors of a denoiser. To add one: write its function, add a flag to LatentAugmentationOptions and a row to
AUGMENTATIONS.

    states (B, T, d_lm) --states--> encoder --> latents (B, L, D) --latents--> decoder --> tokens (B, T) --tokens-->

Masks and noise on encoder states, and masks on latents: COSMOS, Meshchaninov et al. 2025, arXiv:2506.21170. Token
dropout: Bowman et al. 2016, arXiv:1511.06349, section 3.1. Validation and sampling change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from latent_models.autoencoders.options import LatentAugmentationOptions
from latent_models.autoencoders.variational import sample
from utils.seeding import StepRNG


def mask_states(states: Tensor, mask: Tensor, prob: float, rng: StepRNG, length: int) -> Tensor:
    """States (B, T, d) with a share of them zero. Their positions stay, so that the length of a text is known."""
    kept = rng.uniform("state_mask", length)[:, : states.shape[1]] >= prob
    return states * kept[..., None].to(states.dtype)


def add_state_noise(states: Tensor, mask: Tensor, sigma: float, rng: StepRNG, length: int) -> Tensor:
    """States (B, T, d) + sigma rms eps; rms: root mean square of the states of each text, without padding."""
    valid = mask.to(states.dtype)[..., None]
    mean = (states.detach().square() * valid).sum((1, 2), keepdim=True) / valid.sum((1, 2), keepdim=True).clamp(min=1)
    eps = rng.normal("state_noise", length, states.shape[-1])[:, : states.shape[1]].to(states.dtype)
    return states + sigma * (mean / states.shape[-1]).sqrt() * eps


def mask_latents(latents: Tensor, mask: Tensor, prob: float, rng: StepRNG, length: int) -> Tensor:
    """Latents (B, L, D) with a share of them zero."""
    kept = rng.uniform("latent_mask", length)[:, : latents.shape[1]] >= prob
    return latents * kept[..., None].to(latents.dtype)


def hide_tokens(labels: Tensor, mask: Tensor, prob: float, rng: StepRNG, length: int) -> Tensor:
    """(B, T) bool: inputs of the language model's decoder that are hidden."""
    return rng.uniform("token_dropout", length)[:, : labels.shape[1]] < prob


class Augmentation(NamedTuple):
    """A row of AUGMENTATIONS."""

    place: str  # states, latents or tokens
    flag: str  # field of LatentAugmentationOptions: its strength, 0 for none
    # (what is at the place (B, P, ...), its mask (B, P), strength, random numbers, largest P) -> the same, changed; at
    # tokens: ids -> a mask of those that are hidden. Numbers are drawn for the largest P: they are then the same for
    # every split of a batch, whatever its padding.
    apply: Callable[[Tensor, Tensor, float, StepRNG, int], Tensor]


AUGMENTATIONS: dict[str, Augmentation] = {
    "state_mask": Augmentation("states", "state_mask_prob", mask_states),
    "state_noise": Augmentation("states", "state_noise", add_state_noise),
    "latent_mask": Augmentation("latents", "latent_mask_prob", mask_latents),
    "token_dropout": Augmentation("tokens", "token_dropout", hide_tokens),
}


def used_augmentations(options: LatentAugmentationOptions) -> dict[str, float]:
    """Strength of each augmentation that is on, by name."""
    found = {name: getattr(options, row.flag) for name, row in AUGMENTATIONS.items()}
    return {name: strength for name, strength in found.items() if strength}


class BatchAugmentation:
    """All that training changes of one batch; CompressedSpace.forward calls it at each place. By itself: nothing."""

    sigma: Tensor | None = None  # (B,), noise of the latents that the decoder reads; known after the call

    def states(self, states: Tensor, mask: Tensor) -> Tensor:
        """Encoder states (B, T, d_lm) before they are compressed. mask: (B, T)."""
        return states

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Latents (B, L, D) of a variational bottleneck."""
        return mean

    def __call__(self, x0: Tensor, mask: Tensor | None = None) -> Tensor:
        """Latents (B, L, D) before they are decoded. mask: (B, L), None where no latent is padding."""
        return x0

    def hidden_tokens(self, labels: Tensor, mask: Tensor) -> Tensor | None:
        """(B, T) bool, the inputs of the language model's decoder that are hidden; None for none of them."""
        return None


class DrawnAugmentation(BatchAugmentation):
    """The augmentations of the flags, with the random numbers of one micro-batch."""

    def __init__(self, strengths: Mapping[str, float], rng: StepRNG, max_seq_len: int, num_latents: int) -> None:
        """strengths: of used_augmentations. max_seq_len, num_latents: largest numbers of tokens and of latents."""
        self.strengths, self.rng, self.max_seq_len, self.num_latents = strengths, rng, max_seq_len, num_latents

    def states(self, states: Tensor, mask: Tensor) -> Tensor:
        return self._apply("states", states, mask, self.max_seq_len)

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        eps = self.rng.normal("variational", self.num_latents, mean.shape[-1])[:, : mean.shape[1]]
        return sample(mean, log_variance, eps.to(mean.dtype))

    def __call__(self, x0: Tensor, mask: Tensor | None = None) -> Tensor:
        return self._apply("latents", x0, x0[..., 0] if mask is None else mask, self.num_latents)

    def hidden_tokens(self, labels: Tensor, mask: Tensor) -> Tensor | None:
        row = AUGMENTATIONS["token_dropout"]
        prob = self.strengths.get("token_dropout")
        return row.apply(labels, mask, prob, self.rng, self.max_seq_len) if prob else None

    def _apply(self, place: str, x: Tensor, mask: Tensor, length: int) -> Tensor:
        for name, strength in self.strengths.items():
            if AUGMENTATIONS[name].place == place:
                x = AUGMENTATIONS[name].apply(x, mask, strength, self.rng, length)
        return x

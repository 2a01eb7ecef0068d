"""Losses beside reconstruction that any autoencoder can have. To add one: write its function, add its weight to
LatentLossOptions and a row to LATENT_LOSSES.

An autoencoder's own losses are methods of its class (Autoencoder.losses); these need no change of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from latent_models.autoencoders.heads import Heads, align, match_features
from latent_models.autoencoders.options import LatentLossOptions
from latent_models.autoencoders.variational import kl_divergence
from utils.records import Latents


@dataclass
class LossInputs:
    """What is known of a batch after it was encoded and decoded."""

    mask: Tensor  # (B, T) bool, of the tokens
    states: Tensor  # (B, T, d_lm), of the frozen encoder, without augmentation; of one that trains, as it was before
    latents: Latents  # as encoded, before augmentation; the mean, where they have a variance
    log_variance: Tensor | None  # (B, L, D) of a variational bottleneck
    memory: Tensor  # (B, S, d_lm), decoded from augmented latents
    memory_mask: Tensor | None  # (B, S), None where no state is padding
    target: Tensor | None  # (B, d), features of the texts by the model of --alignment_weight; None in validation


def feature_matching(inputs: LossInputs, heads: Heads) -> Tensor:
    assert heads.feature_matching is not None
    return match_features(heads.feature_matching, inputs.memory, inputs.memory_mask, inputs.states, inputs.mask)


def alignment(inputs: LossInputs, heads: Heads) -> Tensor | None:
    if inputs.target is None:
        return None
    assert heads.alignment is not None
    return align(heads.alignment, inputs.latents.x0, inputs.latents.mask, inputs.target)


def kl(inputs: LossInputs, heads: Heads) -> Tensor:
    """Nats per token, as the reconstruction loss, so that the weight 1 gives the evidence lower bound."""
    assert inputs.log_variance is not None
    nats = kl_divergence(inputs.latents.x0, inputs.log_variance, inputs.latents.mask)
    return nats / inputs.mask.sum(1).clamp(min=1)


class LatentLoss(NamedTuple):
    """A row of LATENT_LOSSES."""

    compute: Callable[[LossInputs, Heads], Tensor | None]  # (B,); None where it cannot be computed in validation
    weight: str  # field of LatentLossOptions; 0 switches the loss off


LATENT_LOSSES: dict[str, LatentLoss] = {
    "feature_matching": LatentLoss(feature_matching, "feature_matching_weight"),
    "alignment": LatentLoss(alignment, "alignment_weight"),
    "kl": LatentLoss(kl, "kl_weight"),
}


def loss_weights(options: LatentLossOptions) -> dict[str, float]:
    """Weights of the losses that are on, by name."""
    weights = {name: getattr(options, row.weight) for name, row in LATENT_LOSSES.items()}
    return {name: weight for name, weight in weights.items() if weight}

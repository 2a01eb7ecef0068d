"""Interfaces of training data. They import no model code, so that a training step that uses them stays small."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from latent_models.spaces.base import LatentSpace
from utils.records import Condition, Latents

if TYPE_CHECKING:
    from pipelines.data.tokens import TokenSplit


class LatentSource(Protocol):
    """Normalized latents of one split with their conditions, on the device."""

    @property
    def space(self) -> LatentSpace: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def tokens(self) -> TokenSplit: ...

    def __len__(self) -> int:
        """Texts of the split."""

    def __call__(self, rows: Tensor) -> tuple[Latents, Condition | None]:
        """rows: (B,). Latents (B, L, D); None where the run has neither classes nor sources."""


class DataModule(Protocol):
    """Training data of a latent space: tokens, cached latents, and the files that a run folder keeps of them."""

    tokenizer: Any

    @property
    def tokens(self) -> Mapping[str, TokenSplit]:
        """By split: "train" and "valid"."""

    def save_artifacts(self, folder: Path) -> None:
        """Save the files that a run folder needs besides its checkpoints. Called once, by rank 0, before training."""

    def metadata(self, folder: Path) -> dict[str, Any]:
        """Entries of args.json."""

    def setup(self, *, estimate_stats: bool) -> None:
        """Encode or load the corpus; every rank calls it. estimate_stats: fill the statistics that a new run saves."""

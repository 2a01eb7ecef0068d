"""The uncompressed space: the language model's own encoder states, padded to a fixed length.

The first release of the method and its annealed fork diffuse here. Lengths differ, so a mask goes with every latent,
and sampling draws lengths from those of the training set.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from latent_models.language_models import LanguageModel
from latent_models.spaces import LatentSpace
from utils.errors import UserError
from utils.records import Batch, Latents


class EncoderStatesSpace(LatentSpace):
    """(B, T) tokens -> states (B, L, d_lm) with a mask, L the longest text allowed."""

    masked = True
    by_token = True

    def __init__(self, language_model: LanguageModel, max_seq_len: int) -> None:
        super().__init__()
        limit = language_model.max_length
        if limit is not None and max_seq_len > limit:
            raise UserError(
                f"--max_seq_len {max_seq_len} is longer than {language_model.name} can read: give {limit} or less"
            )
        self.language_model = language_model
        self.length, self.dim = max_seq_len, language_model.dim

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        states = self.language_model.encode(batch.input_ids, batch.attention_mask)  # (B, T, d_lm)
        short = self.length - states.shape[1]
        if short < 0:
            raise UserError(
                f"a text of {states.shape[1]} tokens exceeds the {self.length} positions of these latents: "
                "cut texts off at --max_seq_len"
            )
        mask = F.pad(batch.attention_mask.bool(), (0, short))
        # states at padding mean nothing and are never trained on; zero keeps them from reaching statistics
        return Latents(F.pad(states, (0, 0, 0, short)) * mask[..., None], mask)

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self.language_model.generate(latents.x0, latents.mask, **generate)

    def fingerprint(self) -> str:
        return f"states-{self.length}-" + self.language_model.fingerprint()

"""The uncompressed space: encoder states of the language model, padded to a fixed length.

The first release of the method and its annealed fork diffuse in this space. Lengths differ, so latents come with a
mask, and sampling draws lengths from those of the training set.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from latent_models.generation.infilling import fill_tokens
from latent_models.language_models import LanguageModel
from latent_models.spaces.base import LatentSpace
from utils.errors import UserError
from utils.records import Batch, Latents


class EncoderStatesSpace(LatentSpace):
    """(B, T) tokens -> states (B, L, d_lm) with a mask; L is the longest text allowed."""

    variable_length = True
    one_latent_per_token = True

    def __init__(self, language_model: LanguageModel, max_seq_len: int) -> None:
        super().__init__()
        limit = language_model.max_length
        if limit is not None and max_seq_len > limit:
            raise UserError(
                f"--max_seq_len {max_seq_len} is longer than {language_model.name} can read: give {limit} or less"
            )
        self.language_model = language_model
        self.length, self.dim = max_seq_len, language_model.dim

    def encode(self, batch: Batch) -> Latents:
        states = self.language_model.encode(batch.input_ids, batch.attention_mask)  # (B, T, d_lm)
        short = self.length - states.shape[1]
        if short < 0:
            raise UserError(
                f"a text of {states.shape[1]} tokens exceeds the {self.length} positions of these latents: "
                "truncate texts at --max_seq_len"
            )
        mask = F.pad(batch.attention_mask.bool(), (0, short))
        # states at padding have no meaning and are never trained on; the zeros do not enter the statistics
        return Latents(F.pad(states, (0, 0, 0, short)) * mask[..., None], mask)

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self.language_model.generate(latents.x0, latents.mask, **generate)

    def fill(self, latents: Latents, ids: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        return fill_tokens(self.language_model, latents.x0, latents.mask, ids, known, lengths)

    def fingerprint(self) -> str:
        return f"states-{self.length}-" + self.language_model.fingerprint()

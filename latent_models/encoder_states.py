"""The uncompressed space: the language model's own encoder states, padded to a fixed length.

The first release of the method and its annealed fork diffuse here. Lengths differ, so a mask goes with every latent, and
sampling draws lengths from those of the training set.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_models.language_models import LanguageModel
from latent_models.spaces import LatentSpace
from utils.errors import UserError
from utils.records import Batch, Latents


class EncoderStatesSpace(LatentSpace):
    """(B, T) tokens -> states (B, L, d_lm) with a mask, L the longest text allowed."""

    lengths: Tensor

    def __init__(self, language_model: LanguageModel, max_seq_len: int, length_counts: Tensor | None = None) -> None:
        """length_counts: (L + 1,) how many training texts have each length in tokens; None until it is known."""
        super().__init__()
        limit = language_model.max_length
        if limit is not None and max_seq_len > limit:
            raise UserError(f"--max_seq_len {max_seq_len} is longer than {language_model.name} can read ({limit} tokens)")
        self.language_model = language_model
        self.length, self.dim = max_seq_len, language_model.dim
        counts = torch.zeros(max_seq_len + 1) if length_counts is None else length_counts.float()
        self.register_buffer("lengths", counts)

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        states = self.language_model.encode(batch.input_ids, batch.attention_mask)  # (B, T, d_lm)
        short = self.length - states.shape[1]
        mask = F.pad(batch.attention_mask.bool(), (0, short))
        # states at padding mean nothing and are never trained on; zero keeps them from reaching statistics
        return Latents(F.pad(states, (0, 0, 0, short)) * mask[..., None], mask)

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self.language_model.generate(latents.x0, latents.mask, **generate)

    def sample_mask(self, n: int, generator: torch.Generator) -> Tensor:
        if not bool(self.lengths.sum() > 0):
            raise UserError("this run holds no length prior, so no lengths can be drawn: train it again, or give its training corpus")
        drawn = torch.multinomial(self.lengths.cpu(), n, replacement=True, generator=generator)
        return torch.arange(self.length) < drawn[:, None]

    def fingerprint(self) -> str:
        return f"states-{self.length}-" + self.language_model.fingerprint()


def count_lengths(lengths: Tensor, max_seq_len: int) -> Tensor:
    """(n,) lengths of training texts in tokens -> (max_seq_len + 1,) counts; a text of no tokens cannot be a latent."""
    counts = torch.bincount(lengths.clamp(max=max_seq_len), minlength=max_seq_len + 1)
    if counts[0]:
        raise UserError(f"{int(counts[0])} training texts hold no tokens at all: take empty lines out of the corpus")
    return counts

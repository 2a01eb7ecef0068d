"""The contract of a latent space: text to latents and back. Code above latent_models uses only this contract.

A space uses tokens and language models, but no noise schedule. Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from utils.errors import UserError
from utils.records import Batch, Latents
from utils.tokenizer_fingerprint import splitting_rules


class LatentSpace(nn.Module, ABC):
    """The space in which diffusion happens."""

    length: int  # L, positions of a latent
    dim: int  # D, channels of a position
    variable_length: bool = True  # whether texts differ in their number of positions; then latents need their mask
    one_latent_per_token: bool = False  # whether k tokens fill the first k positions; a cache then stores no padding
    learned_with_denoiser: bool = False  # whether diffusion training changes the space; its latents are not cached
    always_project: bool = True  # whether sampling projects every estimate; False where projecting rounds to tokens
    loss_weights: Mapping[str, float] = {}  # weights of the losses by name; 1 where a name is missing
    has_text_decoder: bool = True  # whether decode generates text, so that it takes a decoding strategy (--decoding)
    decoding_draws: bool = False  # whether decode draws random numbers whatever the strategy: noise on latents

    @abstractmethod
    def encode(self, batch: Batch) -> Latents:
        """Clean latents of a batch of tokens."""

    @abstractmethod
    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        """Texts of clean latents. generate: arguments of the decoder, see generation/decoding.py."""

    def fill(self, latents: Latents, ids: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        """ids (B, T) whose unknown positions hold tokens of the latents: the blanks of given texts.

        known: (B, T) bool, False at the blanks. lengths: (B,) tokens of each text. UserError where a space cannot.
        """
        raise UserError(f"infilling: a {type(self).__name__} cannot decode around given tokens: use another space")

    def check_fill(self) -> None:
        """UserError where this kind of space can never decode around given tokens: before anything is sampled."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of all that determines what encode returns; part of the key of a latent cache."""

    def splitting_rules(self) -> str:
        """How the tokenizer of the model that reads texts splits them, and what it puts around them; "" without one.

        Part of the key of a latent cache, since the fingerprint of a language model leaves it out.
        """
        # pooled features, which latents may be aligned with, have an encoder alone
        model = getattr(self, "language_model", None) or getattr(self, "encoder", None)
        tokenizer = getattr(model, "tokenizer", None)
        return "" if tokenizer is None else splitting_rules(tokenizer)

    def encoding_fingerprint(self) -> str:
        """Hash of all that determines latents; two spaces with the same one differ at most in their decoders."""
        return self.fingerprint()

    def project(self, x0: Tensor) -> Tensor:
        """The nearest point of the space to an estimate (B, L, D); the identity where every point belongs to it."""
        return x0

    def losses(self, batch: Batch, latents: Latents, x0_hat: Tensor) -> dict[str, Tensor]:
        """The space's own losses (B,) by name; training adds each, times its weight, to that of the prediction.

        latents: the target of the prediction; in distillation, the teacher's estimate. x0_hat: (B, L, D), the
        denoiser's estimate, with gradient. By default there are no such losses.
        """
        return {}

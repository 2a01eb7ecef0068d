"""The compressed space: a language model's encoder states, squeezed by a Perceiver into a fixed set of latents.

Lovelace et al. 2023, arXiv:2212.09462, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.drafting import Drafter
from latent_models.language_models import LanguageModel
from latent_models.perceiver import PerceiverAutoencoder
from latent_models.spaces import LatentSpace
from utils.checkpoints import fingerprint
from utils.records import Batch, Latents


class CompressedSpace(LatentSpace):
    """(B, T) tokens -> states (B, T, d_lm) -> latents (B, L, D) -> states (B, L, d_lm) -> text."""

    masked = False
    keeps_frozen = False  # whether a checkpoint holds what does not train, too

    def __init__(self, language_model: LanguageModel, autoencoder: PerceiverAutoencoder) -> None:
        super().__init__()
        self.language_model = language_model
        self.autoencoder = autoencoder
        self.length, self.dim = autoencoder.num_latents, autoencoder.dim
        self.drafter: Drafter | None = None  # of a trained space; it makes greedy decoding faster and changes no text

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        return self.compress(self.language_model.encode(batch.input_ids, batch.attention_mask), batch)

    def compress(self, states: Tensor, batch: Batch) -> Latents:
        """Latents of the encoder's states (B, T, d_lm) of a batch."""
        x0 = self.autoencoder.encode(states, batch.attention_mask)
        return Latents(x0, torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device))

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        draft = None if self.drafter is None else partial(self.drafter.ids, self.language_model.model)
        return self.language_model.generate(self.autoencoder.decode(latents.x0), None, draft=draft, **generate)

    def passes(self) -> tuple[int, int]:
        return self.language_model.writer.passes()

    def forward(
        self,
        batch: Batch,
        disturb: Callable[[Tensor], Tensor] | None = None,
        states: Tensor | None = None,
    ) -> Tensor:
        """What the autoencoder trains on: cross-entropy (B,) of the text given its latents, nats per token.

        disturb: what is done to the latents (B, L, D) before they are decoded, for example `disturbed`.
        states: (B, T, d_lm) of the encoder where they are known already.
        """
        x0 = (self.encode(batch) if states is None else self.compress(states, batch)).x0
        if disturb is not None:
            x0 = disturb(x0)
        memory = self.autoencoder.decode(x0)
        return self.language_model.reconstruction_loss(memory, None, batch.input_ids, batch.attention_mask)

    def train_decoder_alone(self) -> None:
        """From now on only what writes texts trains; what encodes them stays, in eval mode, and so do all latents.

        Embeddings that encoder and decoder share belong to the encoder. A checkpoint holds both halves.
        """
        model, keeps = self.language_model.model, self._encoding()
        self.requires_grad_(False)
        encoders = {id(p) for part in keeps for p in part.parameters()}
        writers = [self.autoencoder.decoder, model.get_decoder(), model.get_output_embeddings()]
        for p in (p for part in writers for p in part.parameters()):
            p.requires_grad_(id(p) not in encoders)
        self.keeps_frozen = True

    def train(self, mode: bool = True) -> CompressedSpace:
        super().train(mode)
        if self.keeps_frozen:
            for part in self._encoding():
                part.eval()
        return self

    def _encoding(self) -> tuple[nn.Module, nn.Module]:
        return self.language_model.model.get_encoder(), self.autoencoder.encoder

    def encoding_fingerprint(self) -> str:
        """Hash of all that decides latents: two spaces that agree in it differ at most in how they write texts."""
        states, latents = self._encoding()
        return fingerprint({**states.state_dict(), **{f"latents.{k}": x for k, x in latents.state_dict().items()}})

    def disturbed(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Latents (B, L, D) as diffusion might get them wrong: sqrt(1 - sigma^2) x0 + sigma noise, projected.

        noise: standard normal. sigma: (B,) in [0, 1]; 0 leaves a text's latents as they are. The noise takes the size
        of the latents themselves, so that sigma means the same with and without --l2_normalize_latents.
        """
        size = x0.detach().square().mean((1, 2), keepdim=True).sqrt()
        sigma = sigma[:, None, None]
        return self.project((1 - sigma**2).sqrt() * x0 + sigma * size * noise)

    def project(self, x0: Tensor) -> Tensor:
        return self.autoencoder.project(x0)

    def fingerprint(self) -> str:
        return fingerprint(self.autoencoder.state_dict()) + self.language_model.fingerprint()

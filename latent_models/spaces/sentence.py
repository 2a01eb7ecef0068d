"""The space of frozen embeddings: the states of a text encoder, pooled to one vector or a few, and scaled.

Nothing trains but the decoder (latent_models/spaces/decoded), and the queries of a learned pooling with it. Text is
generated from such vectors in Shen et al. 2020, arXiv:1905.12777, and Morris et al. 2023, arXiv:2310.06816.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_models.pooling import Pooling
from latent_models.sentences import SplitTexts, TokenKinds, special_tokens_around
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.scaling import LatentScaling
from latent_models.text_encoders import TextEncoder
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.records import Batch, Latents

SENTENCES_AT_ONCE = 256


class SentenceSpace(LatentSpace):
    """(B, T) tokens -> states (B, T, d) -> latents (B, K, d); K is 1 for one vector a text."""

    one_latent_per_token = False
    has_text_decoder = False

    def __init__(self, encoder: TextEncoder, pooling: Pooling, scaling: LatentScaling) -> None:
        super().__init__()
        self.language_model = encoder  # the name under which every space has the model that reads its texts
        self.pooling, self.scaling = pooling, scaling
        self.length, self.dim, self.variable_length = pooling.num_latents, encoder.dim, pooling.variable
        self._kinds: tuple[TokenKinds, tuple[list[int], list[int]]] | None = None

    @property
    def trains(self) -> bool:
        """Whether the pooling has weights: then its latents cannot be kept while the decoder trains."""
        return any(True for _ in self.pooling.parameters())

    def encode(self, batch: Batch) -> Latents:
        return self.scale(self.encode_unscaled(batch))

    def encode_unscaled(self, batch: Batch) -> Latents:
        """Pooled states before scaling; those of a frozen pooling may be kept on disk."""
        ids, mask, encoder = batch.input_ids, batch.attention_mask, self.language_model
        if not ids.shape[1]:  # texts without any word, of a tokenizer that puts no special tokens around them
            ids, mask = F.pad(ids, (0, 1), value=encoder.pad_id), F.pad(mask, (0, 1), value=0)
        if not self.pooling.of_sentences:
            return Latents(*self._pool(encoder.encode(ids, mask), mask))
        split = self._split(ids, mask)
        lengths = split.attention_mask.sum(1)
        rows = lengths.argsort()
        # neighbors in length together: sentences of one text differ in length, and padding costs as much as words
        parts = [self._vectors(split, part, int(lengths[part[-1]])) for part in rows.split(SENTENCES_AT_ONCE)]
        vectors = torch.cat(parts)
        x0 = vectors.new_zeros(*split.mask.shape, self.dim)
        x0[split.mask] = vectors[rows.argsort()]
        return Latents(x0, split.mask)

    def _vectors(self, split: SplitTexts, rows: Tensor, length: int) -> Tensor:
        """The vectors (k, d) of some sentences, of at most `length` tokens."""
        ids, mask = split.input_ids[rows, :length], split.attention_mask[rows, :length]
        vectors, _ = self._pool(self.language_model.encode(ids, mask), mask)
        return vectors[:, 0]

    def _pool(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """In float32 also under autocast: a mean of many states would be rounded to half precision."""
        with torch.autocast(states.device.type, enabled=False):
            return self.pooling(states.float(), mask)

    def scale(self, latents: Latents) -> Latents:
        """Latents of encode_unscaled -> latents of this space."""
        mask = latents.mask if self.variable_length else None
        return Latents(self.scaling(latents.x0, mask), latents.mask)

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        raise UserError(
            "the space of frozen embeddings has no decoder: train one with python -m pipelines.train_text_decoder, and "
            "name its run with --latent_model_path"
        )

    def fingerprint(self) -> str:
        state = {f"scaling.{key}": x for key, x in self.scaling.state_dict().items()}
        return self.unscaled_fingerprint() + f"-{self.scaling.kind}-" + fingerprint(state)

    def unscaled_fingerprint(self) -> str:
        """Hash of all that determines what encode_unscaled returns."""
        kind = f"sentence-{type(self.pooling).__name__}-{self.length}-"
        learned = self.pooling.state_dict()
        return kind + (fingerprint(learned) if learned else "") + self.language_model.fingerprint()

    def _split(self, ids: Tensor, mask: Tensor) -> SplitTexts:
        encoder = self.language_model
        if self._kinds is None:
            self._kinds = TokenKinds.of(encoder.tokenizer), special_tokens_around(encoder.tokenizer)
        kinds, around = self._kinds
        return SplitTexts.of(ids, mask, kinds, around, self.length, encoder.pad_id)


class UnscaledSpace(LatentSpace):
    """The latents of a space before its scaling: what a cache holds, so that stages share it."""

    def __init__(self, space: Any) -> None:
        """space: a SentenceSpace, or another one with encode_unscaled and unscaled_fingerprint."""
        super().__init__()
        self._space = (space,)  # no submodule: its mode is not changed from here
        self.length, self.dim, self.variable_length = space.length, space.dim, space.variable_length
        self.one_latent_per_token = space.one_latent_per_token

    @property
    def language_model(self) -> Any:
        """The model that reads texts."""
        return self._space[0].language_model

    def encode(self, batch: Batch) -> Latents:
        return self._space[0].encode_unscaled(batch)

    def decode(self, latents: Latents, **generate: Any) -> list[str]:
        return self._space[0].decode(self.scale(latents), **generate)

    def fingerprint(self) -> str:
        return self._space[0].unscaled_fingerprint()

    @torch.no_grad()
    def scale(self, latents: Latents) -> Latents:
        """Latents of this space -> those of the space that it was made of."""
        return self._space[0].scale(latents)

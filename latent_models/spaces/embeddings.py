"""The space of token embeddings: a position of a latent is a token, and the vectors are learned with the denoiser.

    x0 ~ N(Emb(w), sigma_0^2),  p(w | x0) = softmax of scores against the same table (rounding.py)

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217; Gong et al. 2023 (DiffuSeq), arXiv:2210.08933.
Knows tokens, no language model and no schedule: sigma_0, the noise that the process begins with, is given to it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.cross_entropy import chunked_nll
from latent_models.options import EmbeddingOptions
from latent_models.spaces.rounding import ROUNDING_HEADS, argmax_token, nearest_token
from latent_models.spaces.base import LatentSpace
from latent_models.tokenizers.special_ids import end_id, start_id
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.records import Anchor, Batch, Latents
from utils.tokenizer_fingerprint import fingerprint as tokenizer_fingerprint


class TokenEmbedding(nn.Module):
    """Token -> vector of D channels: a table, random or pretrained, perhaps projected, perhaps of unit scale."""

    def __init__(self, vocabulary: int, options: EmbeddingOptions, pretrained: Tensor | None = None) -> None:
        """pretrained: (V, d) vectors to begin with; with options.embedding_dim other than d they are projected."""
        super().__init__()
        width = options.embedding_dim or (128 if pretrained is None else pretrained.shape[1])
        self.dim, self.normalised = width, options.normalize_embeddings
        scale = options.embedding_std
        start = torch.randn(vocabulary, width) if pretrained is None else pretrained.float()
        self.table = nn.Parameter(start.clone(), requires_grad=not options.freeze_embeddings)
        self.projection = None if start.shape[1] == width else nn.Linear(start.shape[1], width, bias=False)
        # pretrained vectors are a tenth as long as the noise of the process, which would drown them
        with torch.no_grad():
            if self.projection is not None:
                self.projection.weight.mul_(scale / self.unnormalized().std())
            elif pretrained is not None:
                self.table.mul_(scale / start.std())
            else:
                self.table.mul_(scale)

    @property
    def width(self) -> int:
        """Channels of the table before it is projected."""
        return self.table.shape[1]

    def unnormalized(self) -> Tensor:
        return self.table if self.projection is None else self.projection(self.table)

    def forward(self) -> Tensor:
        """All vectors (V, D), in float32: also under autocast, as they are what the diffusion begins with."""
        with torch.autocast(self.table.device.type, enabled=False):
            vectors = self.unnormalized()
            return F.normalize(vectors, dim=-1) * self.dim**0.5 if self.normalised else vectors


class EmbeddingSpace(LatentSpace):
    """(B, T) tokens -> x0 (B, L, D), L the longest text allowed, D channels of an embedding.

    With padding "masked", a mask goes with every latent, padding is never noised towards and lengths of samples are
    drawn from those of the training set (normalisation.Normalised). With "generated" padding is a token like any other,
    as published: nothing is masked, and a sample ends where the network writes its end token.
    """

    learned_with_denoiser = True

    def __init__(
        self,
        tokenizer: Any,
        options: EmbeddingOptions,
        max_seq_len: int,
        sigma_0: float = 0.0,
        pretrained: Tensor | None = None,
    ) -> None:
        """tokenizer: a fast Hugging Face one. sigma_0: standard deviation of x0 around its embedding.

        pretrained: (V, d) input embeddings of a language model that has this tokenizer, see embedding_init.py.
        """
        super().__init__()
        if tokenizer.pad_token_id is None or end_id(tokenizer) is None:
            raise UserError(
                "a tokenizer without a padding and an end token cannot make texts of embeddings: give another"
            )
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        assert pretrained is None or len(pretrained) == vocabulary, "embeddings of another vocabulary"
        self.tokenizer, self.length, self.sigma_0 = tokenizer, max_seq_len, sigma_0
        self.pad_id: int = tokenizer.pad_token_id
        self.variable_length = options.padding == "masked"
        self.vectors = TokenEmbedding(vocabulary, options, pretrained)
        self.dim = self.vectors.dim
        self.bias = nn.Parameter(torch.zeros(vocabulary))  # of the rounding head
        self.head = ROUNDING_HEADS[options.rounding_head]

    def positions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of a batch (B, T), padded to the length of the space; no mask where padding is text."""
        short = self.length - batch.input_ids.shape[1]
        if short < 0:
            raise UserError(
                f"a text of {batch.input_ids.shape[1]} tokens exceeds the {self.length} positions of these latents: "
                "cut texts off at --max_seq_len"
            )
        mask = F.pad(batch.attention_mask.bool(), (0, short))
        ids = torch.where(mask, F.pad(batch.input_ids, (0, short)), self.pad_id)
        return ids, mask if self.variable_length else torch.ones_like(mask)

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Latents:
        """mean = Emb(w), x0 = mean + sigma_0 noise; zero outside the mask. Without a generator x0 is the mean."""
        ids, mask = self.positions(batch)
        mean = F.embedding(ids, self.vectors()) * mask[..., None]  # (B, L, D)
        latents = Latents(mean, mask, mean)
        if generator is None or not self.sigma_0:
            return latents
        return self.add_sigma0_noise(latents, torch.randn(mean.shape, generator=generator, device=generator.device).to(mean))

    def add_sigma0_noise(self, latents: Latents, noise: Tensor) -> Latents:
        """x0 drawn around its mean with standard normal noise (B, L, D) that the caller drew for the global batch."""
        assert latents.mean is not None
        return Latents(latents.mean + self.sigma_0 * noise * latents.mask[..., None], latents.mask, latents.mean)

    def anchor(self, batch: Batch, latents: Latents) -> Anchor | None:
        """What stays clean of packed texts: the embeddings, without noise, where batch.known_mask is True."""
        if batch.known_mask is None:
            return None
        assert latents.mean is not None
        return Anchor(latents.mean, F.pad(batch.known_mask, (0, self.length - batch.known_mask.shape[1])))

    def token_logits(self, x0: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, V), up to a number per position; `nll` and `tokens` do not hold them all at once."""
        return F.linear(x0, *self.head(self.vectors(), self.bias))

    def nll(self, batch: Batch, x0: Tensor, where: Tensor | None = None) -> Tensor:
        """Cross-entropy of the tokens given x0 (B, L, D): (B,), nats per valid position. Padding counts only where it
        is generated. where: (B, L) bool, the positions that count; None: all of them."""
        ids, mask = self.positions(batch)
        mask = mask if where is None else mask & where
        weight, bias = self.head(self.vectors(), self.bias)
        nll = chunked_nll(x0.flatten(0, 1), weight, bias, ids.flatten()).view(ids.shape)
        # where, not a product: what stands at padding may be anything, infinite too
        return torch.where(mask, nll, 0).sum(1) / mask.sum(1).clamp(min=1)

    def losses(self, batch: Batch, latents: Latents, x0_hat: Tensor) -> dict[str, Tensor]:
        """decoder_nll: -log p(w | x0), which keeps embeddings apart."""
        return {"decoder_nll": self.nll(batch, latents.x0)}

    def project(self, x0: Tensor) -> Tensor:
        """The nearest embedding, for clamping: every position becomes a token."""
        vectors = self.vectors()
        return F.embedding(nearest_token(x0, vectors), vectors).to(x0.dtype)

    def tokens(self, x0: Tensor) -> Tensor:
        """The likeliest ids (B, L)."""
        return argmax_token(x0, *self.head(self.vectors(), self.bias))

    def decode(self, latents: Latents, *, skip: Tensor | None = None, **generate: Any) -> list[str]:
        """Texts of the likeliest tokens, cut at the end token, without special tokens.

        skip: (B, L) bool, positions that are not part of the text: the source of a packed pair.
        generate: settings of a decoder, which has no choice here.
        """
        return self.texts(self.tokens(latents.x0), latents.mask if skip is None else latents.mask & ~skip)

    def texts(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Ids (B, L) as texts; mask: (B, L) bool, the positions to read."""
        start, end = start_id(self.tokenizer), end_id(self.tokenizer)
        rows = []
        for row, visible in zip(ids.tolist(), mask.tolist(), strict=True):
            row = [token for token, there in zip(row, visible, strict=True) if there]
            row = row[1:] if row and row[0] == start else row  # it may be the end token, too
            rows.append(row[: row.index(end)] if end in row else row)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @torch.no_grad()
    def spread(self) -> Tensor:
        """Root mean square distance of the embeddings from their centre, per channel: near 0 they have collapsed."""
        vectors = self.vectors()
        return (vectors - vectors.mean(0)).square().mean().sqrt()

    def fingerprint(self) -> str:
        kind = f"embeddings-{self.length}-{self.sigma_0}-{self.variable_length}-{self.vectors.normalised}-"
        return kind + fingerprint(self.state_dict()) + tokenizer_fingerprint(self.tokenizer)

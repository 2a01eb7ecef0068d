"""The space of token embeddings: each position is a token, and the embeddings are learned with the denoiser.

    x0 ~ N(Emb(w), sigma_0^2),  p(w | x0) = softmax of scores against the same table (rounding.py)

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217; Gong et al. 2023 (DiffuSeq), arXiv:2210.08933.
It uses neither a language model nor a schedule: sigma_0, the noise of the first step, is an argument.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_models.cross_entropy import chunked_nll
from latent_models.generation.infilling import visible_tokens
from latent_models.spaces.base import LatentSpace
from latent_models.spaces.options import EmbeddingOptions
from latent_models.spaces.rounding import ROUNDING_HEADS, argmax_token, nearest_token
from latent_models.tokenizers.special_ids import end_id, start_id
from utils.checkpoints import fingerprint
from utils.errors import UserError
from utils.records import Batch, KnownPositions, Latents
from utils.tokenizer_fingerprint import fingerprint as tokenizer_fingerprint


class TokenEmbedding(nn.Module):
    """A table of embeddings (V, D): random or pretrained, optionally projected, optionally of norm sqrt(D)."""

    def __init__(self, vocabulary: int, options: EmbeddingOptions, pretrained: Tensor | None = None) -> None:
        """pretrained: (V, d) initial embeddings; where options.embedding_dim differs from d, they are projected."""
        super().__init__()
        width = options.embedding_dim or (128 if pretrained is None else pretrained.shape[1])
        self.dim, self.normalized = width, options.normalize_embeddings
        scale = options.embedding_std
        start = torch.randn(vocabulary, width) if pretrained is None else pretrained.float()
        self.table = nn.Parameter(start.clone(), requires_grad=not options.freeze_embeddings)
        self.projection = None if start.shape[1] == width else nn.Linear(start.shape[1], width, bias=False)
        # pretrained embeddings are a tenth as large as the noise of the process
        with torch.no_grad():
            if self.projection is not None:
                self.projection.weight.mul_(scale / self.unnormalized().std())
            elif pretrained is not None:
                self.table.mul_(scale / start.std())
            else:
                self.table.mul_(scale)

    @property
    def width(self) -> int:
        """Channels of the table before projection."""
        return self.table.shape[1]

    def unnormalized(self) -> Tensor:
        """Embeddings (V, D) after projection, before normalization."""
        return self.table if self.projection is None else self.projection(self.table)

    def forward(self) -> Tensor:
        """All embeddings (V, D), in float32 also under autocast: they are the clean data of diffusion."""
        with torch.autocast(self.table.device.type, enabled=False):
            vectors = self.unnormalized()
            return F.normalize(vectors, dim=-1) * self.dim**0.5 if self.normalized else vectors


class EmbeddingSpace(LatentSpace):
    """(B, T) tokens -> x0 (B, L, D); L is the longest text allowed, D the width of an embedding.

    With --padding masked, latents have a mask, padding is not part of the data, and lengths of samples are drawn from
    those of the training set (normalization.NormalizedSpace). With --padding generated, padding is a token like any
    other, as published: nothing is masked, and a sample ends at its end token.
    """

    learned_with_denoiser = True
    always_project = False  # project rounds to tokens, which is optional while sampling (--clamp)
    has_text_decoder = False

    def __init__(
        self,
        tokenizer: Any,
        options: EmbeddingOptions,
        max_seq_len: int,
        sigma_0: float = 0.0,
        pretrained: Tensor | None = None,
    ) -> None:
        """tokenizer: a fast Hugging Face tokenizer. sigma_0: standard deviation of x0 around its embedding.

        pretrained: (V, d) input embeddings of the language model of this tokenizer, see embedding_init.py.
        """
        super().__init__()
        if tokenizer.pad_token_id is None or end_id(tokenizer) is None:
            raise UserError(
                "the tokenizer lacks a padding or an end token, which the space of embeddings needs: give another"
            )
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        assert pretrained is None or len(pretrained) == vocabulary, "embeddings of another vocabulary"
        self.tokenizer, self.length, self.sigma_0 = tokenizer, max_seq_len, sigma_0
        self.pad_id: int = tokenizer.pad_token_id
        self.variable_length = options.padding == "masked"
        self.vectors = TokenEmbedding(vocabulary, options, pretrained)
        self.dim = self.vectors.dim
        self.bias = nn.Parameter(torch.zeros(vocabulary))  # bias of the rounding head
        self.head = ROUNDING_HEADS[options.rounding_head]

    def positions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L) of a batch (B, T), padded to the length of the space; all True where padding is
        generated."""
        short = self.length - batch.input_ids.shape[1]
        if short < 0:
            raise UserError(
                f"a text of {batch.input_ids.shape[1]} tokens exceeds the {self.length} positions of these latents: "
                "truncate texts at --max_seq_len"
            )
        mask = F.pad(batch.attention_mask.bool(), (0, short))
        ids = torch.where(mask, F.pad(batch.input_ids, (0, short)), self.pad_id)
        return ids, mask if self.variable_length else torch.ones_like(mask)

    def encode(self, batch: Batch) -> Latents:
        """x0 = mean = Emb(w), zero outside the mask. add_sigma0_noise draws x0 around it."""
        ids, mask = self.positions(batch)
        mean = F.embedding(ids, self.vectors()) * mask[..., None]  # (B, L, D)
        return Latents(mean, mask, mean)

    def add_sigma0_noise(self, latents: Latents, noise: Tensor) -> Latents:
        """x0 = mean + sigma_0 noise. noise: (B, L, D), standard normal."""
        assert latents.mean is not None
        return Latents(latents.mean + self.sigma_0 * noise * latents.mask[..., None], latents.mask, latents.mean)

    def known_positions(self, batch: Batch, latents: Latents) -> KnownPositions | None:
        """The embeddings of packed texts that get no noise, at the positions where batch.known_mask is True."""
        if batch.known_mask is None:
            return None
        assert latents.mean is not None
        return KnownPositions(latents.mean, F.pad(batch.known_mask, (0, self.length - batch.known_mask.shape[1])))

    def nll(self, batch: Batch, x0: Tensor, where: Tensor | None = None) -> Tensor:
        """Cross-entropy of the tokens given x0 (B, L, D): (B,), nats per valid position. Padding counts only where it
        is generated. where: (B, L) bool, the positions that count; None: all of them."""
        ids, mask = self.positions(batch)
        mask = mask if where is None else mask & where
        weight, bias = self.head(self.vectors(), self.bias)
        nll = chunked_nll(x0.flatten(0, 1), weight, bias, ids.flatten()).view(ids.shape)
        # where, not a product: padding may contain any value, also infinity
        return torch.where(mask, nll, 0).sum(1) / mask.sum(1).clamp(min=1)

    def losses(self, batch: Batch, latents: Latents, x0_hat: Tensor) -> dict[str, Tensor]:
        """decoder_nll: -log p(w | x0), the loss that keeps embeddings of different tokens apart."""
        return {"decoder_nll": self.nll(batch, latents.x0)}

    def project(self, x0: Tensor) -> Tensor:
        """The nearest embedding of each position, for clamping."""
        vectors = self.vectors()
        return F.embedding(nearest_token(x0, vectors), vectors).to(x0.dtype)

    def tokens(self, x0: Tensor) -> Tensor:
        """The likeliest token ids (B, L)."""
        return argmax_token(x0, *self.head(self.vectors(), self.bias))

    def fill(self, latents: Latents, ids: Tensor, known: Tensor, lengths: Tensor) -> Tensor:
        """The likeliest words at the blanks; neither padding nor another special token."""
        weight, bias = self.head(self.vectors(), self.bias)
        visible = visible_tokens(self.tokenizer, len(weight)).to(bias.device)
        bias = bias.masked_fill(~visible, torch.finfo(bias.dtype).min)
        return torch.where(known, ids, argmax_token(latents.x0[:, : ids.shape[1]], weight, bias))

    def decode(self, latents: Latents, *, skip: Tensor | None = None, **generate: Any) -> list[str]:
        """Texts of the likeliest tokens, cut at the end token, without special tokens.

        skip: (B, L) bool, positions that are not part of the text: the source of a packed pair.
        generate: ignored; there is no decoder to configure.
        """
        return self.texts(self.tokens(latents.x0), latents.mask if skip is None else latents.mask & ~skip)

    def texts(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of ids (B, L); mask: (B, L) bool, the positions that belong to the text."""
        start, end = start_id(self.tokenizer), end_id(self.tokenizer)
        rows = []
        for row, visible in zip(ids.tolist(), mask.tolist(), strict=True):
            row = [token for token, there in zip(row, visible, strict=True) if there]
            row = row[1:] if row and row[0] == start else row  # the start token may equal the end token
            rows.append(row[: row.index(end)] if end in row else row)
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def fingerprint(self) -> str:
        kind = f"embeddings-{self.length}-{self.sigma_0}-{self.variable_length}-{self.vectors.normalized}-"
        return kind + fingerprint(self.state_dict()) + tokenizer_fingerprint(self.tokenizer)

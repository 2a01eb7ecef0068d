"""Pooling: the states of a text's tokens to one vector, or to a few.

To add one, write a class as below and add a row to POOLINGS. Shapes: B texts, T tokens, K vectors of d channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError


class Pooling(nn.Module):
    """(states (B, T, d), mask (B, T)) -> vectors (B, K, d) and their mask (B, K)."""

    num_latents = 1  # K
    variable = False  # whether texts differ in their number of vectors
    of_sentences = False  # whether the rows it gets are sentences, each encoded by itself

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        vectors = self.pool(states, mask)
        return vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, K, d)."""
        raise NotImplementedError


def masked_average(states: Tensor, weights: Tensor) -> Tensor:
    """Averages of states (B, T, d) by weights (B, K, T): (B, K, d). Weights of zero give zeros."""
    weights = weights.to(states.dtype)
    return weights @ states / weights.sum(-1, keepdim=True).clamp(min=1)


class MeanPooling(Pooling):
    """The mean over all tokens, special ones included, at unit norm: Reimers & Gurevych 2019, arXiv:1908.10084."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return F.normalize(masked_average(states, mask[:, None]), dim=-1)


class FirstPooling(Pooling):
    """The state of the first token, such as [CLS]."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        return states[:, :1]


class LastPooling(Pooling):
    """The state of the last token: the only one of a causal model that has read the whole text."""

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        last = (mask.long().sum(1) - 1).clamp(min=0)
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[-1]))


class SegmentPooling(Pooling):
    """The means of K equal pieces of a text, each at unit norm.

    Of n tokens, piece k holds those from floor(k n / K) to before ceil((k + 1) n / K), as adaptive average pooling:
    no piece is empty, and neighbors share a token where K does not divide n.
    """

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.num_latents = num_latents

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        n, count = mask.long().sum(1)[:, None], self.num_latents  # (B, 1)
        piece = torch.arange(count, device=mask.device)  # (K,)
        first, stop = piece * n // count, ((piece + 1) * n + count - 1) // count  # (B, K)
        place = torch.arange(mask.shape[1], device=mask.device)  # (T,), padding is on the right
        inside = (place >= first[..., None]) & (place < stop[..., None])  # (B, K, T)
        return F.normalize(masked_average(states, inside), dim=-1)


class SentencePooling(MeanPooling):
    """One vector a sentence, the mean over its tokens at unit norm; at most K, the last of which holds all the rest.

    The space hands each sentence over as a row of its own, see latent_models/sentences.
    """

    variable = True
    of_sentences = True

    def __init__(self, num_latents: int) -> None:
        super().__init__()
        self.num_latents = num_latents


class LearnedPooling(Pooling):
    """Attention of K learned queries to the states; it trains with the decoder.

    Each vector is normalized over its channels, without weights, so that training cannot rescale the latents.
    """

    def __init__(self, num_latents: int, dim: int) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.queries = nn.Parameter(torch.randn(num_latents, dim) * dim**-0.5)
        self.norm = nn.LayerNorm(dim)
        self.keys, self.values = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def pool(self, states: Tensor, mask: Tensor) -> Tensor:
        states = self.norm(states)
        scores = self.queries @ self.keys(states).transpose(1, 2) * states.shape[-1] ** -0.5  # (B, K, T)
        scores = scores.masked_fill(~mask.bool()[:, None], torch.finfo(scores.dtype).min)
        vectors = scores.softmax(-1) @ self.values(states)
        return F.layer_norm(vectors, vectors.shape[-1:])


class PoolingRow(NamedTuple):
    """A value of POOLINGS."""

    make: Callable[[int, int], Pooling]  # (K, d) -> the pooling
    many: bool  # whether K is chosen (--num_sentence_latents); otherwise it is 1
    trains: bool = False  # whether it has weights, which train with the decoder
    of_causal: bool = True  # whether it has a meaning for a causal model


POOLINGS: dict[str, PoolingRow] = {
    "mean": PoolingRow(lambda count, dim: MeanPooling(), many=False),
    "first": PoolingRow(lambda count, dim: FirstPooling(), many=False, of_causal=False),
    "last": PoolingRow(lambda count, dim: LastPooling(), many=False),
    "segments": PoolingRow(lambda count, dim: SegmentPooling(count), many=True),
    "sentences": PoolingRow(lambda count, dim: SentencePooling(count), many=True),
    "learned": PoolingRow(LearnedPooling, many=True, trains=True),
}
DEFAULT_LATENTS = 4  # K of a pooling to several vectors where --num_sentence_latents is not given


def make_pooling(name: str, num_latents: int | None, dim: int, *, is_causal: bool = False) -> Pooling:
    """The pooling of a row of POOLINGS. num_latents: K, None for the default. dim: d.

    Raises UserError, in one line, where K or the kind does not fit.
    """
    row = POOLINGS[name]
    if not row.many and num_latents not in (None, 1):
        many = ", ".join(key for key, other in POOLINGS.items() if other.many)
        raise UserError(
            f"--num_sentence_latents {num_latents} and --pooling {name} contradict each other, since that gives one "
            f"vector: choose --pooling {many}, or leave --num_sentence_latents out"
        )
    if is_causal and not row.of_causal:
        raise UserError(
            f"--pooling {name} takes a token that has read nothing else in a causal model: choose --pooling last or "
            "mean"
        )
    return row.make(num_latents or DEFAULT_LATENTS, dim)

"""Smoothness of a latent space: decode the mean of the latents of each text and its nearest neighbor, and score it.

A denoiser's samples lie between the latents of texts, so a space whose midpoints decode to fluent texts is suited to
generation. Reconstruction does not show this: an autoencoder may reconstruct every text, and decode nonsense elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from evaluation.encoders import SentenceEncoder
from evaluation.metrics import INTERPOLATION, MetricContext, compute_metrics
from evaluation.protocols import Result, compute_mauves, protocol
from evaluation.scorers import Scorer
from latent_models.generation.decoding import DECODING
from latent_models.spaces.base import LatentSpace
from pipelines.data.tokens import TokenSplit
from utils.errors import UserError
from utils.progress import ProgressBar
from utils.records import Latents
from utils.seeding import derive_seed


def nearest(x0: Tensor) -> Tensor:
    """Return the row of each text's nearest neighbor by cosine similarity: (n,), for x0 (n, L, D)."""
    if len(x0) < 2:
        raise UserError(f"{len(x0)} text has no neighbor: raise --eval_texts to 2 or more")
    flat = torch.nn.functional.normalize(x0.flatten(1).float(), dim=1)
    return (flat @ flat.T).fill_diagonal_(-torch.inf).argmax(dim=1)


@torch.no_grad()
def midpoints(
    space: LatentSpace,
    data: TokenSplit,
    rows: Tensor,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> tuple[Latents, Tensor]:
    """Return latents midway between each text of `rows` and its nearest neighbor among them, and the neighbors (n,).

    The midpoints are projected if the space has a projection. Where texts differ in their number of latents, a midpoint
    has as many as its text, of which those that its neighbor lacks stay as they are.
    """
    encoded: list[tuple[Tensor, Tensor, Tensor]] = []
    with autocast():
        for part, batch in data.length_sorted_batches(batch_size, rows):
            latents = space.encode(batch.to(device))
            encoded.append((part, latents.x0.float(), latents.mask))
    order = torch.cat([part for part, _, _ in encoded]).argsort()
    order = order[rows.argsort().argsort()].to(device)  # in the order of rows
    x0, mask = torch.cat([x0 for _, x0, _ in encoded])[order], torch.cat([mask for _, _, mask in encoded])[order]
    neighbors = nearest(x0)
    mean = (x0 + x0[neighbors]) / 2
    if space.variable_length:
        mean = torch.where((mask & mask[neighbors])[..., None], mean, x0)
    return Latents(space.project(mean), mask), neighbors.cpu()


@torch.no_grad()
def decode_all(
    space: LatentSpace,
    latents: Latents,
    strategy: str,
    batch_size: int,
    max_length: int,
    autocast: Callable[[], AbstractContextManager],
    quiet: bool = False,
    decoding: Mapping[str, Mapping[str, Any]] = DECODING,
) -> list[str]:
    """Decode latents by one strategy, in batches. Returns the texts in order. decoding: settings by strategy."""
    texts: list[str] = []
    with ProgressBar(f"midpoints ({strategy})", len(latents), unit="text", disable=quiet) as bar, autocast():
        for first in range(0, len(latents), batch_size):
            torch.manual_seed(derive_seed(0, "midpoints", strategy, first))  # for strategies that sample tokens
            batch = latents[first : first + batch_size]
            texts += space.decode(batch, max_length=max_length, **decoding[strategy])
            bar.advance(len(batch))
    return texts


def evaluate_interpolation(
    texts: Sequence[str], ends: Sequence[str], neighbors: Sequence[int], scorer: Scorer, *, prefix: str
) -> Result:
    """Compute perplexity and diversity of decoded midpoints, and of the original texts (reference/midpoints_*).

    texts: the decoded midpoints. ends: the original texts, in the same order. neighbors: the row of each text's nearest
    neighbor in `ends`. endpoint_copies: the share of midpoints that decode to one of their two endpoints.
    """
    numbers, missing = compute_metrics(MetricContext(texts, scorer=scorer), INTERPOLATION)
    real, _ = compute_metrics(MetricContext(ends, scorer=scorer), INTERPOLATION)
    pairs = zip(texts, ends, neighbors, strict=True)
    numbers["endpoint_copies"] = sum(text in (end, ends[other]) for text, end, other in pairs) / max(1, len(texts))
    result: Result = {f"{prefix}{key}": value for key, value in numbers.items()}
    result |= {f"reference/midpoints_{key}": value for key, value in real.items()}
    result["protocol"] = protocol(scorer, len(texts), (), missing)
    return result


def evaluate_imauve(
    texts: Sequence[str],
    held_out: Sequence[str],
    scorer: Scorer | None,
    encoder: SentenceEncoder | None,
    *,
    prefix: str,
) -> Result:
    """Compute iMAUVE: MAUVE of decoded midpoints against held-out texts, by a scorer and by a sentence encoder.

    Keys: {prefix}{model}_imauve. Among autoencoders it follows the MAUVE of the samples of a denoiser, where
    reconstruction does not. held_out: best of other texts than those between which the midpoints lie.
    """
    found = compute_mauves({"midpoints": (texts, held_out)}, scorer, encoder)
    result: Result = {f"{prefix}{key.replace('_midpoints_mauve', '_imauve')}": x for key, x in found.numbers.items()}
    result["protocol"] = protocol(scorer, len(texts), found.of_scorer, found.missing) | found.encoder_protocol
    return result

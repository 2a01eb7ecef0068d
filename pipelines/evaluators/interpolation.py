"""What a latent space holds between texts: the middle of each text and its nearest neighbour, written out and judged.

A denoiser's samples lie between texts rather than on them. So a space whose middles read well can be generated from,
which reconstruction does not tell: an autoencoder may copy every text and write nonsense beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from evaluation.metrics import MetricContext, measure
from evaluation.protocols import Result, protocol
from evaluation.scorers import Scorer
from latent_models.decoding import DECODING
from latent_models.spaces import LatentSpace
from pipelines.data.tokens import TokenSplit
from utils.errors import UserError
from utils.progress import Progress
from utils.records import Latents
from utils.seeding import derive

JUDGED = ("empty", "perplexity", "diversity")


def nearest(x0: Tensor) -> Tensor:
    """Of each text the other one whose latents point most nearly the same way: rows (n,) of x0 (n, L, D)."""
    if len(x0) < 2:
        raise UserError(f"{len(x0)} text has no neighbour: raise --eval_texts to 2 or more")
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
    """Latents midway between each text of `rows` and its nearest neighbour among them, and which that is, (n,).

    For spaces in which all texts are equally long. Projected, where the space projects.
    """
    found: list[tuple[Tensor, Tensor]] = []
    with autocast():
        for part, batch in data.length_sorted_batches(batch_size, rows):
            found.append((part, space.encode(batch.to(device)).x0.float()))
    order = torch.cat([part for part, _ in found]).argsort()
    x0 = torch.cat([x0 for _, x0 in found])[order[rows.argsort().argsort()].to(device)]  # in the order of rows
    neighbours = nearest(x0)
    middle = space.project((x0 + x0[neighbours]) / 2)
    return Latents(middle, torch.ones(middle.shape[:2], dtype=torch.bool, device=device)), neighbours.cpu()


@torch.no_grad()
def written(
    space: LatentSpace,
    latents: Latents,
    strategy: str,
    batch_size: int,
    max_length: int,
    autocast: Callable[[], AbstractContextManager],
    quiet: bool = False,
) -> list[str]:
    """Texts of latents by one strategy, in their order."""
    texts: list[str] = []
    with Progress(f"midpoints ({strategy})", len(latents), unit="text", quiet=quiet) as bar, autocast():
        for first in range(0, len(latents), batch_size):
            torch.manual_seed(derive(0, "midpoints", strategy, first))  # for a strategy that samples
            some = latents[first : first + batch_size]
            texts += space.decode(some, max_length=max_length, **DECODING[strategy])
            bar.advance(len(some))
    return texts


def evaluate_interpolation(
    texts: Sequence[str], ends: Sequence[str], neighbours: Sequence[int], scorer: Scorer, *, prefix: str
) -> Result:
    """Perplexity and diversity of middles, and of the texts that they lie between (reference/midpoints_*).

    copies: the share of middles that are one of their two ends, word for word. ends: the texts themselves, in the order
    of the middles; neighbours: their rows.
    """
    found, missing = measure(texts, MetricContext(scorer), JUDGED)
    real, _ = measure(ends, MetricContext(scorer), JUDGED)
    pairs = zip(texts, ends, neighbours, strict=True)
    found["copies"] = sum(text in (end, ends[other]) for text, end, other in pairs) / max(1, len(texts))
    result: Result = {f"{prefix}{key}": value for key, value in found.items()}
    result |= {f"reference/midpoints_{key}": value for key, value in real.items()}
    result["protocol"] = protocol(scorer, len(texts), (), missing)
    return result

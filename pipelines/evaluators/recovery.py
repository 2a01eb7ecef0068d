"""Recovery from noise: decode the noised latents of held-out texts, and how sure the decoder is there.

A denoiser's samples lie beside the latents of texts, by about its own error. A decoder that returns the text of noised
latents has wide basins: the share that it recovers, and the distance of its two best tokens, fall with the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evaluation.distributed import on_rank0
from evaluation.protocols import evaluate_reconstruction
from latent_models.generation.decoding import DECODING
from latent_models.spaces.compressed import CompressedSpace
from pipelines.data.tokens import TokenSplit
from pipelines.evaluators.reconstruction import Decode, Decoding, reconstruct
from utils.distributed import DistContext
from utils.preemption import check_interrupt
from utils.records import Batch, Latents
from utils.seeding import derive_seed

SIGMAS = (0.2, 0.4, 0.6)  # of the latents of a text, variance-preserving
KEPT = ("bleu", "exact_match")  # metrics of reconstruction at each sigma


def noised(space: CompressedSpace, latents: Latents, sigma: float) -> tuple[Latents, Tensor]:
    """Latents with noise of torch's generator, drawn on the CPU, and sigma (B,) for the decoder."""
    x0, level = latents.x0, latents.x0.new_full((len(latents),), sigma)
    noise = torch.randn(x0.shape).to(x0)
    mask = latents.mask if space.variable_length else None
    return Latents(space.add_latent_noise(x0, noise, level, mask), latents.mask), level


def via_noised_latents(space: CompressedSpace, sigma: float, max_length: int, decoding: Decoding = DECODING) -> Decode:
    """Return a function that encodes texts, adds noise to their latents and decodes these."""

    def decode(batch: Batch, strategy: str) -> list[str]:
        latents, level = noised(space, space.encode(batch), sigma)
        memory, mask = space.memory(latents, level), latents.mask if space.variable_length else None
        return space.language_model.generate(
            memory, mask, greedy_loop=space.greedy_loop, max_length=max_length, **decoding[strategy]
        )

    return decode


@torch.no_grad()
def margin(
    space: CompressedSpace,
    data: TokenSplit,
    rows: Tensor,
    batch_size: int,
    sigma: float,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> float:
    """Difference of the decoder's two largest logits at each token of a text, given the tokens before it, in nats: a
    mean over the tokens of each text, then over texts. sigma: noise of the latents."""
    model, means = space.language_model, []
    with autocast(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for i, (_, batch) in enumerate(data.length_sorted_batches(batch_size, rows)):
            check_interrupt()
            torch.manual_seed(derive_seed(0, "margin", i))
            batch = batch.to(device)
            latents, level = noised(space, space.encode(batch), sigma)
            states_mask = latents.mask if space.variable_length else None
            logits = model.logits(space.memory(latents, level), states_mask, batch.input_ids)
            best = logits.float().topk(2, dim=-1).values  # (B, T, 2)
            gap, mask = best[..., 0] - best[..., 1], batch.attention_mask
            means.append((gap * mask).sum(1) / mask.sum(1).clamp(min=1))
    return float(torch.cat(means).cpu().double().mean())


def evaluate_recovery(
    space: CompressedSpace,
    data: TokenSplit,
    rows: Tensor,
    references: Sequence[str],
    strategies: Sequence[str],
    *,
    batch_size: int,
    max_length: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    dist: DistContext | None,
    quiet: bool = False,
    decoding: Mapping[str, Mapping[str, Any]] = DECODING,
    sigmas: Sequence[float] = SIGMAS,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Metrics and texts of held-out texts decoded from noised latents. Every rank calls it, and shares the batches.

    Keys: noise/{strategy}/bleu_{sigma} and exact_match_{sigma}; noise/{strategy}/recovery, the mean BLEU over sigmas;
    noise/margin_{sigma}, see margin(). dist: ranks that share the batches; None: every rank computes all of them.
    """
    metrics: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    for strategy in strategies:
        for sigma in sigmas:
            decode = via_noised_latents(space, sigma, max_length, decoding)
            title = f"recover (noise {sigma:g}, {strategy})"
            made = reconstruct(decode, data, rows, batch_size, strategy, device, autocast, title, quiet, dist)
            texts[f"noise {sigma:g}/{strategy}"] = made
            found = on_rank0(
                dist or DistContext(device=device), None, partial(evaluate_reconstruction, made, references)
            )
            metrics |= {f"noise/{strategy}/{name}_{sigma:g}": found[name] for name in KEPT if name in found}
        bleus = [metrics.get(f"noise/{strategy}/bleu_{sigma:g}") for sigma in sigmas]
        if all(bleu is not None for bleu in bleus):
            metrics[f"noise/{strategy}/recovery"] = sum(bleus) / len(bleus)  # type: ignore[arg-type]
    for sigma in sigmas:
        metrics[f"noise/margin_{sigma:g}"] = margin(space, data, rows, batch_size, sigma, device, autocast)
    return metrics, texts

"""The losses of diffusion in a space of token embeddings, whose vectors are learned along.

    x0 ~ N(Emb(w), sigma_0^2),   L = |x0 - x0_hat(z_t, t)|^2 - log p(w | x0) + |alpha(1) x0|^2

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217, eq. 2; Gong et al. 2023 (DiffuSeq), arXiv:2210.08933, eq. 4.
Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.denoisers import make_denoise, time_value
from diffusion.loss import aimed_at_mean, diffuse, prediction_loss, terminal_mean_loss
from diffusion.objectives import canonical, to_x0
from diffusion.schedules import level_at, timesteps_of
from latent_models.embeddings import EmbeddingSpace
from pipelines.process import Process
from utils.records import Batch, Condition, Latents


@dataclass
class Drawn:
    """What chance decides of a micro-batch: drawn by the caller for the global batch."""

    t: Tensor  # (B,) times
    eps: Tensor  # (B, L, D) noise of the process
    spread: Tensor  # (B, L, D) noise of x0 around its embedding
    shown: Tensor | None  # (B,) bool on the CPU, who sees an estimate of its own; None: no self-conditioning


class EmbeddingLoss(nn.Module):
    """One module of all that trains: where several processes share a batch, its forward is what averages gradients."""

    def __init__(self, denoiser: nn.Module, space: EmbeddingSpace, process: Process) -> None:
        super().__init__()
        self.denoiser, self.space, self.process = denoiser, space, process

    def forward(self, batch: Batch, drawn: Drawn, condition: Condition | None) -> dict[str, Tensor]:
        """Losses (B,) by name: diffusion, decoder_nll and terminal, and for the log rounding_nll, without gradient."""
        space, schedule = self.space, self.process.train_schedule
        latents = space.noised(space.encode(batch), drawn.spread)
        diffusion, x0_hat = self.diffusion(latents, drawn, condition)
        return {
            "diffusion": diffusion,
            **space.auxiliary_losses(batch, latents, x0_hat),
            "terminal": terminal_mean_loss(schedule, latents.x0, self.seen(latents)),
            "rounding_nll": self.rounding(batch, x0_hat),
        }

    def seen(self, latents: Latents) -> Tensor | None:
        """The positions of text; None where padding is text, too."""
        return latents.mask if self.space.masked else None

    def diffusion(self, latents: Latents, drawn: Drawn, condition: Condition | None) -> tuple[Tensor, Tensor]:
        """Loss (B,) of the prediction, and the estimate (B, L, D) that it means."""
        x0, t, options = latents.x0, drawn.t, self.process.options
        assert latents.mean is not None
        mask = self.seen(latents)
        level = level_at(self.process.train_schedule, t, x0)
        z_t = diffuse(x0, drawn.eps, level)  # (B, L, D)
        time = time_value(self.process.train_schedule, t, self.process.time_input)
        x0_prev = has_prev = None
        if drawn.shown is not None:
            x0_prev = self.estimate(z_t, t, mask, condition, drawn.shown.nonzero()[:, 0].to(z_t.device))
            has_prev = drawn.shown.to(z_t.device)
        prediction = self.denoiser(z_t, time, mask, condition, x0_prev, has_prev).to(x0.dtype)
        x0_hat = to_x0(canonical(options.objective), prediction, z_t, level)

        wanted, eps = x0, drawn.eps
        if (timesteps := timesteps_of(self.process.train_schedule)) is not None:
            wanted, eps = aimed_at_mean(x0, eps, latents.mean, level, t, timesteps)
        losses = prediction_loss(prediction, wanted, eps, level, options.objective, options.loss_type, mask)
        return losses * self.process.loss_weight(t), x0_hat

    @torch.no_grad()
    def estimate(
        self, z_t: Tensor, t: Tensor, mask: Tensor | None, condition: Condition | None, rows: Tensor
    ) -> Tensor:
        """First estimates of x0 for some rows of the batch (B, L, D); zero, and never looked at, in the others."""
        some = None if condition is None else condition[rows]
        inner = None if mask is None else mask[rows]

        def network(z: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            return self.denoiser(z, time, inner, some, x0_prev)

        process = self.process
        denoise = make_denoise(network, process.options.objective, process.train_schedule, process.time_input)
        return torch.zeros_like(z_t).index_copy(0, rows, denoise(z_t[rows], t[rows], None))

    @torch.no_grad()
    def rounding(self, batch: Batch, x0_hat: Tensor) -> Tensor:
        """-log p(w | x0_hat), (B,), nats per token: how far the estimates are from the texts."""
        return self.space.nll(batch, x0_hat)

"""The losses of diffusion in a space of token embeddings, whose vectors are learned along.

    x0 ~ N(Emb(w), sigma_0^2),   L = |x0 - x0_hat(z_t, t)|^2 - log p(w | x0) + |alpha(1) x0|^2

Li et al. 2022 (Diffusion-LM), arXiv:2205.14217, eq. 2; Gong et al. 2023 (DiffuSeq), arXiv:2210.08933, eq. 4.
Shapes: B texts, L positions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion.absorbing import absorbing_shift, diffused, discrete_rate, remasked
from diffusion.anchoring import anchored
from diffusion.denoisers import make_denoise, time_value
from diffusion.loss import aimed_at_mean, diffuse, prediction_loss, terminal_mean_loss
from diffusion.objectives import canonical, to_x0
from diffusion.schedules import level_at, timesteps_of
from latent_models.embeddings import EmbeddingSpace
from pipelines.building.process import Process
from utils.records import Anchor, Batch, Condition, Latents
from utils.seeding import Chosen
from utils.transfer import moved


@dataclass
class Drawn:
    """What chance decides of a micro-batch: drawn by the caller for the global batch."""

    t: Tensor  # (B,) times
    eps: Tensor  # (B, L, D) noise of the process
    spread: Tensor  # (B, L, D) noise of x0 around its embedding
    shown: Chosen | None  # who sees an estimate of its own; None: no self-conditioning
    masked: Tensor | None = None  # (B, L) uniform in [0, 1): who becomes the absorbing state; None: no discrete noise


class EmbeddingLoss(nn.Module):
    """One module of all that trains: where several processes share a batch, its forward is what averages gradients."""

    def __init__(
        self,
        denoiser: nn.Module,
        space: EmbeddingSpace,
        process: Process,
        absorbing: nn.Parameter | None = None,
        denoise_rate: float = 0.0,
    ) -> None:
        """absorbing: (D,), the state that noise drifts to. denoise_rate: share of tokens replaced by it."""
        super().__init__()
        self.denoiser, self.space, self.process = denoiser, space, process
        self.absorbing, self.denoise_rate = absorbing, denoise_rate

    def forward(self, batch: Batch, drawn: Drawn, condition: Condition | None) -> dict[str, Tensor]:
        """Losses (B,) by name: diffusion, decoder_nll, terminal, with an absorbing state its norm, and for the log
        rounding_nll of what is to be written, without gradient."""
        space, schedule = self.space, self.process.train_schedule
        latents = space.noised(space.encode(batch), drawn.spread)
        anchor = space.anchor(batch, latents)
        diffusion, x0_hat = self.diffusion(latents, anchor, drawn, condition)
        losses = {
            "diffusion": diffusion,
            **space.auxiliary_losses(batch, latents, x0_hat),
            "terminal": terminal_mean_loss(schedule, latents.x0, self.written(latents, anchor)),
            "rounding_nll": self.rounding(batch, x0_hat, self.written(latents, anchor)),
        }
        if self.absorbing is not None:
            losses["absorbing_norm"] = self.absorbing.norm().expand(len(diffusion))
        return losses

    def written(self, latents: Latents, anchor: Anchor | None) -> Tensor | None:
        """The positions that are noised and learned: of a text, without what is given; None for all."""
        if anchor is None:
            return latents.mask if self.space.masked else None
        return latents.mask & ~anchor.mask

    def diffusion(
        self, latents: Latents, anchor: Anchor | None, drawn: Drawn, condition: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """Loss (B,) of the prediction, and the estimate (B, L, D) that it means."""
        x0, t, process = latents.x0, drawn.t, self.process
        assert latents.mean is not None
        mask, written = latents.mask if self.space.masked else None, self.written(latents, anchor)
        level = level_at(process.train_schedule, t, x0)
        shift = None if self.absorbing is None else absorbing_shift(self.absorbing, written)
        z_t = diffuse(x0, drawn.eps, level) if shift is None else diffused(x0, drawn.eps, level, shift)  # (B, L, D)
        if self.absorbing is not None and drawn.masked is not None:
            z_t = remasked(z_t, self.absorbing, discrete_rate(level, self.denoise_rate), drawn.masked, written)

        def network(z: Tensor, time: Tensor, x0_prev: Tensor | None, has_prev: Tensor | None = None) -> Tensor:
            return self.denoiser(given(z, anchor), time, mask, condition, x0_prev, has_prev)

        x0_prev = has_prev = None
        if drawn.shown is not None:
            has_prev, rows = (moved(x, z_t.device) for x in drawn.shown)
            x0_prev = self.estimate(z_t, t, mask, anchor, shift, condition, rows)
        time = time_value(process.train_schedule, t, process.time_input)
        prediction = network(z_t, time, x0_prev, has_prev).to(x0.dtype)
        centred = z_t if shift is None else z_t - (1 - level.alpha) * shift
        x0_hat = given(to_x0(canonical(process.options.objective), prediction, centred, level), anchor)

        wanted, eps = x0, drawn.eps
        if (timesteps := timesteps_of(process.train_schedule)) is not None:
            wanted, eps = aimed_at_mean(x0, eps, latents.mean, level, t, timesteps)
        o = process.options
        losses = prediction_loss(prediction, wanted, eps, level, o.objective, o.loss_type, written)
        return losses * process.loss_weight(t), x0_hat

    @torch.no_grad()
    def estimate(
        self,
        z_t: Tensor,
        t: Tensor,
        mask: Tensor | None,
        anchor: Anchor | None,
        shift: Tensor | None,
        condition: Condition | None,
        rows: Tensor,
    ) -> Tensor:
        """First estimates of x0 (B, L, D) for some rows of the batch, of which has_prev says who sees it; else zero."""
        some = None if condition is None else condition[rows]
        inner = None if mask is None else mask[rows]
        fixed = None if anchor is None else anchor[rows]
        moved = shift if shift is None or len(shift) == 1 else shift[rows]

        def network(z: Tensor, time: Tensor, x0_prev: Tensor | None) -> Tensor:
            return self.denoiser(z, time, inner, some, x0_prev)

        process = self.process
        denoise = make_denoise(
            network, process.options.objective, process.train_schedule, process.time_input, shift=moved
        )
        if fixed is not None:
            denoise = anchored(denoise, fixed.value, fixed.mask)
        return torch.zeros_like(z_t).index_copy(0, rows, denoise(z_t[rows], t[rows], None))

    @torch.no_grad()
    def rounding(self, batch: Batch, x0_hat: Tensor, written: Tensor | None) -> Tensor:
        """-log p(w | x0_hat), (B,), nats per token to be written: how far the estimates are from the texts."""
        return self.space.nll(batch, x0_hat, written)


def given(x: Tensor, anchor: Anchor | None) -> Tensor:
    """x (B, L, D) with what is given in its place."""
    return x if anchor is None else torch.where(anchor.mask[..., None], anchor.value, x)

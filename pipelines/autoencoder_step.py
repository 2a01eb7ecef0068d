"""Stage 1: a batch of texts to the loss of writing them out again from their latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.batch_plan import BatchPlan
from pipelines.latents import Encoded
from pipelines.tokens import TokenSplit


class AutoencoderStep:
    """(step, micro) -> losses (B,) in nats per token, and values to log."""

    def __init__(
        self,
        space: nn.Module,
        data: TokenSplit,
        plan: BatchPlan,
        device: torch.device,
        *,
        shape: tuple[int, int],
        noise: float = 0.0,
        noise_prob: float = 0.5,
        pad_to: int | None = None,
        states: Encoded | None = None,
    ) -> None:
        """space: a CompressedSpace, or the wrapper that averages its gradients over ranks. shape: (L, D) of latents.

        noise: largest sigma of the noise that a share noise_prob of the texts get on their latents; its size is
        uniform, so the decoder learns to trust clean latents and to make do with bad ones.
        pad_to: tokens that every batch is padded to, for a compiled network; None: to the longest of its texts.
        states: the frozen encoder's states of every text, where they are cached.
        """
        self.space, self.data, self.plan, self.device = space, data, plan, device
        self.shape, self.noise, self.noise_prob, self.pad_to = shape, noise, noise_prob, pad_to
        self.states = states

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = self.plan.rows(step, micro, len(self.data))
        batch, states = self.data.batch(rows, self.pad_to), None
        if self.states is not None:
            states = self.states(rows).x0[:, : batch.input_ids.shape[1]]
        batch = batch.to(self.device)
        if not self.noise:
            return self.space(batch, states=states), {}
        draws = self.plan.draws(step, micro, self.device)
        chosen = draws.chosen("latent_noise", self.noise_prob)
        sigma = self.noise * draws.uniform("latent_noise_size") * chosen
        losses = self.space(batch, draws.normal("latent_noise", *self.shape), sigma, states)
        clean = losses.detach() * ~chosen / (1 - self.noise_prob) if self.noise_prob < 1 else 0 * losses.detach()
        return losses, {"loss_clean_latents": clean}

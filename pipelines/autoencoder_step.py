"""Stage 1: a batch of texts to the loss of writing them out again from their latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.batch_plan import BatchPlan
from pipelines.tokens import TokenSplit


class AutoencoderStep:
    """(step, micro) -> losses (B,) in nats per token, and values to log."""

    def __init__(self, space: nn.Module, data: TokenSplit, plan: BatchPlan, device: torch.device) -> None:
        """space: a CompressedSpace, or the wrapper that averages its gradients over ranks."""
        self.space, self.data, self.plan, self.device = space, data, plan, device

    def __call__(self, step: int, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.space(self.data.batch(self.plan.rows(step, micro, len(self.data))).to(self.device)), {}

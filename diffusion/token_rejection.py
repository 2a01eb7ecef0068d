"""Token-stability rejection: leave some positions unrounded and without noise in a step of the sampler.

    rejection = StableTokenRejection(rate, step_generator)
    denoise = rejection.clamp_x0(denoise, project)               in place of clamp_x0 or project_x0
    sampler(denoise, ..., step_hook=rejection.step_hook)         alone, or with others by compose_hooks

A position is a candidate if its rounded token is the same as in the previous step, and is then chosen at random. It
keeps the network's estimate, while all other positions are rounded to token embeddings and noised again.
Source: Gong et al. 2023, arXiv:2310.05793, their code (rejection_rate).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.noise import StepGenerator, copy_like, draw


class StableTokenRejection:
    """Keeps the last rounded estimate. One object serves one sampler call at a time; x0_prev None starts a new one."""

    def __init__(self, rate: float, step_generator: StepGenerator) -> None:
        """rate: probability at t = 1; at t it is rate * t. step_generator: number of the network call -> generator."""
        if not 0 <= rate <= 1:
            raise ValueError(f"the rejection rate is {rate}: use a probability, from 0 (off) to 1")
        self.rate, self.step_generator = rate, step_generator
        self.rounded: Tensor | None = None  # (B, L, D) of the call before
        self.unchanged: Tensor | None = None  # (B, L) bool of the last call
        self.calls = 0

    def clamp_x0(self, denoise: Denoise, project: Callable[[Tensor], Tensor]) -> Denoise:
        """Wrap denoise so that it rounds its estimates with project, except at the rejected positions.

        A position is rejected with probability rate * t if its token did not change since the previous step.
        """

        def denoise_stable(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
            raw = denoise(z, t, x0_prev)
            rounded = project(raw)
            if x0_prev is None:
                self.rounded, self.calls = None, 0
            self.unchanged = torch.zeros(raw.shape[:2], dtype=torch.bool, device=raw.device)
            if self.rounded is not None:
                generator = self.step_generator(self.calls)
                uniform = copy_like(draw(torch.rand, raw.shape[:2], generator), raw)
                same = (rounded == self.rounded).all(-1)  # rows of one embedding table: equal tokens are equal bits
                self.unchanged = same & (uniform < self.rate * t[:, None])
            self.rounded, self.calls = rounded, self.calls + 1
            return torch.where(self.unchanged[..., None], raw, rounded)

        return denoise_stable

    def step_hook(self, z: Tensor, x0: Tensor, mean: Tensor, std: Tensor, t: Tensor, s: Tensor, step: int) -> Tensor:
        """Replace z by the mean, which has no noise, at the rejected positions."""
        return z if self.unchanged is None else torch.where(self.unchanged[..., None], mean, z)

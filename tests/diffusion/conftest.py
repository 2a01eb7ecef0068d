"""Gaussian data, whose optimal denoiser and reverse process have closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.schedules import Schedule, broadcast_level


@dataclass
class Gaussian:
    """x0 ~ N(mean, std^2), independent per channel. mean, std: (D,) float64."""

    mean: Tensor
    std: Tensor

    def denoise(self, schedule: Schedule) -> Denoise:
        """E[x0 | z_t]."""

        def denoise(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
            alpha, sigma = broadcast_level(schedule, t, z)
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
            return self.mean + gain * (z - alpha * self.mean)

        return denoise

    def flow(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The solution at s of the probability-flow ODE from z at t: the same quantile of the other marginal."""

        def marginal(u: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = schedule(u)
            return alpha * self.mean, (alpha**2 * self.std**2 + sigma**2).sqrt()

        (mean_t, std_t), (mean_s, std_s) = marginal(t), marginal(s)
        return mean_s + std_s / std_t * (z - mean_t)


@dataclass
class Prefixed:
    """Two positions of a Gaussian text, the first one known: x1 = x0 couple + rest, rest ~ N(mean, std^2).

    This is the denoiser that partial noising learns. It reads x0 from z at the first position, so its results are wrong
    with a sampler that adds noise there.
    """

    rest: Gaussian
    couple: Tensor  # (D,)

    def denoise(self, schedule: Schedule) -> Denoise:
        rest = self.rest.denoise(schedule)

        def denoise(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
            known = z[:, :1]
            offset = self.couple * known  # (B, 1, D), known
            alpha = broadcast_level(schedule, t, z).alpha
            return torch.cat([torch.zeros_like(known), offset + rest(z[:, 1:] - alpha * offset, t)], 1)

        return denoise

    def flow(self, schedule: Schedule, value: Tensor, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The solution at s of the ODE for the second position (B, 1, D); value: (B, 1, D) of the first."""
        offset = self.couple * value
        moved = self.rest.flow(schedule, z - schedule(t).alpha * offset, t, s)
        return moved + schedule(s).alpha * offset


@pytest.fixture
def gaussian() -> Gaussian:
    """Wide, narrow, centered and shifted channels."""
    return Gaussian(
        torch.tensor([1.5, -0.7, 0.0, 3.0], dtype=torch.float64),
        torch.tensor([0.3, 0.8, 1.7, 0.05], dtype=torch.float64),
    )


@pytest.fixture
def prefixed(gaussian) -> Prefixed:
    return Prefixed(gaussian, torch.tensor([1.0, -0.5, 0.0, 2.0], dtype=torch.float64))


@pytest.fixture
def noise_at_start() -> Tensor:
    """z (2, 3, 4) float64."""
    return torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def recorded_noise():
    """noise(step, like): a function of the step."""

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(step))

    return noise

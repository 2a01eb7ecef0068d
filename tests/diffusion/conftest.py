"""Gaussian data: the one distribution whose best denoiser and whose reverse process have closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from diffusion.denoisers import Denoise
from diffusion.schedules import Schedule, level_at


@dataclass
class Gaussian:
    """x0 ~ N(mean, std^2), independent per channel. mean, std: (D,) float64."""

    mean: Tensor
    std: Tensor

    def denoise(self, schedule: Schedule) -> Denoise:
        """E[x0 | z_t]."""

        def denoise(z: Tensor, t: Tensor, x0_prev: Tensor | None = None) -> Tensor:
            alpha, sigma = level_at(schedule, t, z)
            gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
            return self.mean + gain * (z - alpha * self.mean)

        return denoise

    def flow(self, schedule: Schedule, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the probability-flow ODE takes z from t to s: the same quantile of the other marginal."""

        def marginal(u: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = schedule(u)
            return alpha * self.mean, (alpha**2 * self.std**2 + sigma**2).sqrt()

        (mean_t, std_t), (mean_s, std_s) = marginal(t), marginal(s)
        return mean_s + std_s / std_t * (z - mean_t)


@pytest.fixture
def gaussian() -> Gaussian:
    """Wide, narrow, centred and shifted channels."""
    return Gaussian(
        torch.tensor([1.5, -0.7, 0.0, 3.0], dtype=torch.float64),
        torch.tensor([0.3, 0.8, 1.7, 0.05], dtype=torch.float64),
    )


@pytest.fixture
def noise_at_start() -> Tensor:
    """z (2, 3, 4) float64."""
    return torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def recorded_noise():
    """noise(step, like): always the same for the same step."""

    def noise(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(step))

    return noise

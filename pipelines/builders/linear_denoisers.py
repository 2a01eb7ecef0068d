"""The linear denoiser of a run: what its network predicts, and the amplitudes of its time input."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.noise_levels import power
from diffusion.objectives import TARGETS, resolve_objective
from latent_models.spaces.base import LatentSpace
from model.linear_denoiser import Amplitudes, LinearDenoiser
from pipelines.builders.diffusion_process import DiffusionProcess
from utils.errors import UserError


def make_linear_denoiser(space: LatentSpace, process: DiffusionProcess) -> LinearDenoiser:
    """Without statistics yet. UserError for latents that change while the denoiser trains."""
    if space.learned_with_denoiser:
        raise UserError(
            "--linear_denoiser holds the covariance of latents, and here latents change in training: leave it out"
        )
    half = torch.full((), 0.5, dtype=torch.float64)
    preserving = bool(power(process.train_schedule(half)) == 1)
    coefficients = TARGETS[resolve_objective(process.options.objective)]
    amplitudes = variance_preserving if preserving else linear_path
    return LinearDenoiser(space.dim, space.length, amplitudes, coefficients, one_length=not space.variable_length)


def variance_preserving(alpha_bar: Tensor) -> Amplitudes:
    """alpha and sigma of alpha_bar, any shape, where alpha^2 + sigma^2 = 1."""
    return alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=0).sqrt()


def linear_path(alpha_bar: Tensor) -> Amplitudes:
    """alpha and sigma where alpha + sigma = 1."""
    return alpha_bar.sqrt(), 1 - alpha_bar.sqrt()

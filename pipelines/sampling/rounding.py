"""Rounding while sampling: estimates brought back to token embeddings, and positions back to the absorbing state."""

from __future__ import annotations

from torch import Tensor

from diffusion.absorbing import remasking
from diffusion.denoisers import clamped
from diffusion.rejection import TokenStability
from latent_models.spaces import LatentSpace
from pipelines.flags.options import RoundingOptions
from pipelines.sampling.walk import Walk


class Rounding:
    """An extra of walks (pipelines/sampling/walk), for a space whose project is the nearest embedding."""

    def __init__(self, options: RoundingOptions, space: LatentSpace) -> None:
        self.options, self.space = options, space

    def __call__(self, walk: Walk) -> None:
        o = self.options
        if o.rejection_rate:
            stability = TokenStability(o.rejection_rate, walk.generator_at("rejection"))
            walk.denoise = stability.clamped(walk.denoise, self.space.project)
            walk.corrections.append(stability.correct)
        elif o.clamp:
            walk.denoise = clamped(walk.denoise, self.space.project, from_t=o.clamp_from, until_t=o.clamp_until)


class Remasking:
    """An extra of walks: discrete noise, whole tokens replaced by the absorbing state on the way."""

    def __init__(self, state: Tensor, rate: float) -> None:
        self.state, self.rate = state, rate

    def __call__(self, walk: Walk) -> None:
        state = self.state.detach()
        walk.corrections.append(remasking(state, self.rate, walk.generator_at("remasking"), walk.written))

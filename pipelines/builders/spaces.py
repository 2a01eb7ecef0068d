"""Latent spaces by name (--latent_space). To add one: write its class in latent_models/spaces and its build function in
a file in this folder, and add a row to SPACES.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from latent_models.spaces.base import LatentSpace
from pipelines.builders.embeddings import MetaEmbeddings, load_embeddings
from pipelines.builders.models import SpaceInputs, load_space, meta_space


class SpaceRow(NamedTuple):
    """A latent space of --latent_space; a value of SPACES."""

    build: Callable[[SpaceInputs], LatentSpace]  # on the device of the inputs; a frozen space in eval mode
    # Key of TRAINING (pipelines/steps/spaces): "latents", which are encoded once, or "tokens", if the space is trained.
    training: str


def _build_frozen(inputs: SpaceInputs) -> LatentSpace:
    if inputs.meta:
        return meta_space(inputs.settings, inputs.has_sources)
    return load_space(inputs.settings, inputs.run, inputs.device, inputs.has_sources)


def _build_embeddings(inputs: SpaceInputs) -> LatentSpace:
    if inputs.has_sources and inputs.settings.origins["padding"] == "default":
        inputs.settings.set("padding", "generated")  # as published: the length of a target is not known
    if inputs.meta:
        return cast(LatentSpace, MetaEmbeddings(inputs.settings))
    return load_embeddings(inputs.settings, inputs.run, inputs.schedule, inputs.texts, inputs.device)


SPACES: dict[str, SpaceRow] = {
    "compressed": SpaceRow(_build_frozen, "latents"),
    "sentence": SpaceRow(_build_frozen, "latents"),
    "states": SpaceRow(_build_frozen, "latents"),
    "embeddings": SpaceRow(_build_embeddings, "tokens"),
}

"""Flags of the recipe that flags of the user contradict: they are left out, and a note says so."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from pipelines.cli.configs import AutoencoderConfig
from pipelines.cli.programs import AUTOENCODER
from utils.cli.parse import check_flags
from utils.errors import UserError


def _is_per_token(config: AutoencoderConfig) -> bool:
    return config.autoencoder.autoencoder == "per_token"


class LeftOut(NamedTuple):
    """A flag that the autoencoder of the recipe does without, by what was typed in --autoencoder_flags."""

    flag: str
    applies: Callable[[AutoencoderConfig], bool]
    reason: str


LEFT_OUT = (
    LeftOut(
        "num_encoder_latents",
        _is_per_token,
        "--autoencoder per_token has one latent for each token",
    ),
    LeftOut(
        "l2_normalize_latents",
        lambda config: config.latent_losses.kl_weight > 0,
        "--kl_weight gives latents a mean and a variance, and no fixed norm; they are scaled for the denoiser instead",
    ),
    LeftOut(
        "noise_level_conditioning",
        lambda config: config.autoencoder.max_latent_noise == 0,
        "--max_latent_noise 0 leaves no noise whose level a decoder could read",
    ),
)
OURS = "--max_latent_noise 1"  # what else of ours decides


def left_out(given: Mapping[str, Any]) -> list[LeftOut]:
    """What the autoencoder does without. given: what was typed; a flag of the recipe in it stays, and is refused."""
    config = _typed(given)
    return [row for row in LEFT_OUT if row.applies(config) and row.flag not in given]


def has_latent_per_token(given: Mapping[str, Any]) -> bool:
    """Whether what was typed asks for an autoencoder with one latent for each token."""
    return _is_per_token(_typed(given))


def _typed(given: Mapping[str, Any]) -> AutoencoderConfig:
    try:
        return check_flags(AUTOENCODER, shlex.split(f"{OURS} {given.get('autoencoder_flags') or ''}")).config
    except UserError as error:
        raise UserError(f"--autoencoder_flags: {error}") from None


def without_flags(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words of a command line without some flags and their values. names: without hyphens."""
    kept, dropped = [], False
    for word in words:
        if word.startswith("--"):
            dropped = word[2:].partition("=")[0] in names
        if not dropped:
            kept.append(word)
    return kept

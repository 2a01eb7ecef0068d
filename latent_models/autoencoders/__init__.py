"""Autoencoders by name (--autoencoder). To add one: write its file in this folder, and add a row to AUTOENCODERS.

This file imports no torch, so that `--help` stays fast: a row names the module of its class.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from latent_models.autoencoders.options import PerceiverOptions
from utils.errors import UserError

if TYPE_CHECKING:
    from latent_models.autoencoders.base import Autoencoder


class AutoencoderRow(NamedTuple):
    """A kind of autoencoder; a value of AUTOENCODERS."""

    module: str  # below latent_models/autoencoders
    name: str  # name of the class, an Autoencoder
    options: type  # dataclass of its flags, the second argument of the class

    def load_class(self) -> type[Autoencoder]:
        kind: type[Autoencoder] = getattr(import_module(f"{__name__}.{self.module}"), self.name)
        return kind


AUTOENCODERS: dict[str, AutoencoderRow] = {
    "perceiver": AutoencoderRow("perceiver", "PerceiverAutoencoder", PerceiverOptions),
    "per_token": AutoencoderRow("per_token", "PerTokenAutoencoder", PerceiverOptions),
}


def autoencoder_row(name: str) -> AutoencoderRow:
    """The row of a name; UserError in one line for an unknown one."""
    if name not in AUTOENCODERS:
        raise UserError(f"--autoencoder {name} is not an autoencoder: choose from {', '.join(AUTOENCODERS)}")
    return AUTOENCODERS[name]


def make_autoencoder(
    name: str, dim_lm: int, options: Any, max_seq_len: int, *, variational: bool = False
) -> Autoencoder:
    """An autoencoder with random weights.

    dim_lm: width of the language model. options: an instance of the row's dataclass. max_seq_len: longest text, in
    tokens. variational: latents with a mean and a variance, see variational.py.
    """
    kind: Any = autoencoder_row(name).load_class()
    made: Autoencoder = kind(dim_lm, options, max_seq_len)
    if variational:
        made.make_variational()
    return made

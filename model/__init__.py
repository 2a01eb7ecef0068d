"""Denoising networks by name (--denoiser_variant). To add one: write its file here, and add a row to DENOISERS.

This file imports no torch, so that `--help` stays fast: a row names the module of its class.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from model.options import DenoiserOptions, EncoderDenoiserOptions

if TYPE_CHECKING:
    from model.denoiser import Denoiser
    from model.encoder_denoiser import HFEncoderDenoiser
    from model.encoder_state_denoiser import EncoderStateDenoiser
    from model.mlp_denoiser import MLPDenoiser

    DenoiserNetwork = Denoiser | EncoderStateDenoiser | HFEncoderDenoiser | MLPDenoiser


class DenoiserRow(NamedTuple):
    """A denoising network; a value of DENOISERS."""

    module: str  # below model
    name: str  # its class: (latent_dim, max_len, options, *, num_classes, source_dim), called as Denoiser.forward
    time_input: str  # how the network receives the noise level: a kind of diffusion.denoisers.get_time_input
    options: type | None = None  # dataclass of its flags; the class takes an instance as keyword own_options
    token_positions: bool = True  # its positions are those of the longest text in tokens, even for fewer latents

    def load_class(self) -> Any:
        return getattr(import_module(f"{__name__}.{self.module}"), self.name)


# The second release of the method uses alpha_bar, the others the index of the step.
DENOISERS: dict[str, DenoiserRow] = {
    "latent": DenoiserRow("denoiser", "Denoiser", "alpha_bar"),
    "states": DenoiserRow("encoder_state_denoiser", "EncoderStateDenoiser", "index"),
    "encoder": DenoiserRow("encoder_denoiser", "HFEncoderDenoiser", "index", EncoderDenoiserOptions),
    "mlp": DenoiserRow("mlp_denoiser", "MLPDenoiser", "alpha_bar", token_positions=False),
}


def make_denoiser(
    latent_dim: int,
    max_len: int,
    options: DenoiserOptions,
    num_classes: int = 0,
    source_dim: int = 0,
    own_options: Any = None,
) -> DenoiserNetwork:
    """The network of --denoiser_variant with random weights.

    latent_dim: channels of a latent. max_len: positions of the longest latent. num_classes, source_dim: 0 without
    classes, without sources. own_options: an instance of the row's dataclass; None: its defaults.
    """
    row = DENOISERS[options.denoiser_variant]
    own = {} if row.options is None else {"own_options": own_options or row.options()}
    made: DenoiserNetwork = row.load_class()(
        latent_dim, max_len, options, num_classes=num_classes, source_dim=source_dim, **own
    )
    return made

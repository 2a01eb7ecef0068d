"""Flags of the autoencoders, one dataclass for each."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


@dataclass
class PerceiverOptions:
    """See perceiver.py."""

    num_encoder_latents: int = flag(32, "latents per text", unit="latents", at_least=1, published=True)
    num_decoder_latents: int | None = flag(
        None,
        "latents that the decoder reads; must equal --num_encoder_latents (the default), as the decoder expands each "
        "latent to one state",
        unit="latents",
        at_least=1,
        published=True,
    )
    dim_ae: int = flag(256, "width of a latent", unit="channels", at_least=1, published=True)
    num_layers: int = flag(
        2, "depth of the Perceiver encoder and of the decoder", unit="layers", at_least=1, at_most=1000, published=True
    )
    l2_normalize_latents: bool = flag(False, "rescale every latent to norm sqrt(dim_ae)", published=True)

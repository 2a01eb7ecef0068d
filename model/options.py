"""Flags of the denoising network."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DenoiserOptions:
    tx_dim: int = field(default=512, metadata=dict(help="width of the denoiser, divisible by 64", unit="channels"))
    tx_depth: int = field(default=6, metadata=dict(help="blocks of attention and feed-forward", unit="blocks"))
    self_condition: bool = field(default=False, metadata=dict(help="show the network its previous estimate of x0"))
    scale_shift: bool = field(default=False, metadata=dict(help="modulate feed-forward branches by the noise level"))
    num_dense_connections: int = field(
        default=0, metadata=dict(help="long skips from the first blocks to the last", unit="skips")
    )
    dense_pairing: str = field(
        default="mirror",
        metadata=dict(
            help="which block a long skip comes from: mirror pairs first with last; reference reproduces the published "
            "code, where all but one skip are the stream itself (needed for its weights)",
            choices=("mirror", "reference"),
        ),
    )
    denoiser_variant: str = field(
        default="latent",
        metadata=dict(
            help="latent: second release of the method; states: the first release's network (relative positions, "
            "self-conditioning by cross-attention)",
            choices=("latent", "states"),
        ),
    )
    disable_dropout: bool = field(default=False, metadata=dict(help="dropout 0 instead of 0.1"))
    class_conditional: bool = field(default=False, metadata=dict(help="condition on the class label of the corpus"))

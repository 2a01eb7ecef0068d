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
            "self-conditioning by cross-attention); encoder: a Hugging Face encoder, see --encoder_config",
            choices=("latent", "states", "encoder"),
        ),
    )
    disable_dropout: bool = field(default=False, metadata=dict(help="dropout 0 instead of 0.1"))
    class_conditional: bool = field(default=False, metadata=dict(help="condition on the class label of the corpus"))


@dataclass
class EncoderDenoiserOptions:
    """The denoiser of --denoiser_variant encoder; see model/encoder_denoiser."""

    encoder_config: str | None = field(
        default=None,
        metadata=dict(
            help="layout of the encoder: a folder or config.json of a Hugging Face encoder (BERT, RoBERTa, ...) or its "
            "hub id; unset: BERT-base, 12 layers of 768 channels"
        ),
    )
    encoder_init: str = field(
        default="random",
        metadata=dict(
            help="random weights, or pretrained: those that --encoder_config holds, positions and norms included",
            choices=("random", "pretrained"),
            aliases={"no": "random", "bert": "pretrained"},
        ),
    )
    encoder_dropout: float | None = field(
        default=None,
        metadata=dict(help="dropout of the encoder; unset: what its configuration says", at_least=0, at_most=1),
    )
    encoder_time_dim: int = field(
        default=128, metadata=dict(help="width of the sinusoids that tell the encoder the noise level", unit="channels")
    )


@dataclass
class ClassifierOptions:
    """A classifier of noised latents; see model/classifier."""

    classifier_dim: int = field(default=128, metadata=dict(help="width, divisible by 64", unit="channels"))
    classifier_depth: int = field(default=2, metadata=dict(help="blocks of attention and feed-forward", unit="blocks"))
    classifier_pooling: str = field(
        default="mean",
        metadata=dict(
            help="what the label is read from: the mean over the text, or its first position",
            choices=("mean", "first"),
        ),
    )
    classifier_dropout: float = field(default=0.1, metadata=dict(help="dropout while training", unit="probability"))

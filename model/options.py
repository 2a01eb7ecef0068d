"""Flags of the denoising network."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys

# the layout of a Hugging Face encoder has separate flags
OTHER_DENOISERS = tuple(name for name in table_keys("model", "DENOISERS") if name != "encoder")
TRANSFORMERS = tuple(name for name in OTHER_DENOISERS if name != "mlp")  # an MLP has no long skips, and needs none


@dataclass
class DenoiserOptions:
    tx_dim: int = flag(
        512,
        "width of the denoiser, divisible by 64; mlp: any",
        unit="channels",
        at_least=1,
        needs=("denoiser_variant", *OTHER_DENOISERS),
        published=True,
    )
    tx_depth: int = flag(
        6,
        "blocks of attention and feed-forward; mlp: residual blocks",
        unit="blocks",
        at_most=1000,
        at_least=1,
        needs=("denoiser_variant", *OTHER_DENOISERS),
        published=True,
    )
    self_condition: bool = flag(False, "feed the network its previous estimate of x0", published=True)
    scale_shift: bool = flag(
        False,
        "modulate feed-forward branches by the noise level; mlp always does",
        needs=("denoiser_variant", *OTHER_DENOISERS),
        published=True,
    )
    scale_shift_norm: bool = flag(
        True,
        "norm before scale and shift; weights of the Hydra version of the first release have none",
        needs="scale_shift",
        config_only=True,
    )
    num_dense_connections: int = flag(
        0,
        "long skips from the first blocks to the last",
        unit="skips",
        at_least=0,
        needs=("denoiser_variant", *TRANSFORMERS),
        published=True,
    )
    skip_pairing: str = flag(
        "unet",
        "which block a long skip comes from: unet pairs the first with the last; ld4lg reproduces the published "
        "code, where all but one skip are the stream itself (needed for its weights)",
        choices=("unet", "ld4lg"),
        needs="num_dense_connections",
    )
    denoiser_variant: str = flag(
        "latent",
        "latent: second release of the method; states: the first release's network (relative positions, "
        "self-conditioning by cross-attention); encoder: a Hugging Face encoder, see --encoder_config; mlp: a residual "
        "MLP on all positions at once, for latents of one or few vectors",
        choices=table_keys("model", "DENOISERS"),
    )
    disable_dropout: bool = flag(False, "dropout 0 instead of 0.1", student="may_differ", published=True)
    linear_denoiser: bool = flag(
        False,
        "add to the prediction that of the best linear denoiser, by mean and covariance of the training latents: the "
        "network learns the rest alone, so it needs fewer steps; for latents of one or few vectors",
        needs=("denoiser_variant", "latent", "mlp"),
        space="frozen",
    )
    learned_variance: bool = flag(
        False,
        "a second output: the variance of each step of ancestral sampling, learned with the hybrid loss of Nichol & "
        "Dhariwal 2021; only with --beta_schedule",
        needs="beta_schedule",
    )
    class_conditional: bool = flag(False, "condition on the class label of the corpus", published=True)

    @property
    def outputs(self) -> int:
        """Numbers that the network returns for each number of a latent: its prediction, and its variance if learned."""
        return 2 if self.learned_variance else 1


@dataclass
class EncoderDenoiserOptions:
    """The denoiser of --denoiser_variant encoder; see model/encoder_denoiser."""

    encoder_config: str | None = flag(
        None,
        "layout of the encoder: a folder or config.json of a Hugging Face encoder (BERT, RoBERTa, ...) or its "
        "hub id; unset: BERT-base, 12 layers of 768 channels",
        needs=("denoiser_variant", "encoder"),
    )
    encoder_init: str = flag(
        "random",
        "random weights, or pretrained: those that --encoder_config holds, positions and norms included",
        choices=("random", "pretrained"),
        aliases={"no": "random", "bert": "pretrained"},
        needs=("denoiser_variant", "encoder"),
    )
    encoder_dropout: float | None = flag(
        None,
        "dropout of the encoder; unset: that of its configuration",
        at_least=0,
        at_most=1,
        needs=("denoiser_variant", "encoder"),
        config_only=True,
    )
    encoder_time_dim: int = flag(
        128,
        "width of the sinusoidal embedding of the noise level",
        unit="channels",
        at_least=1,
        needs=("denoiser_variant", "encoder"),
        config_only=True,
    )
    encoder_sinusoids: str = flag(
        "ddpm",
        "sinusoids of the noise level: those of DDPM's code, or of improved DDPM's, which weights of DiffuSeq and of "
        "minimal text diffusion need",
        choices=table_keys("model.encoder_denoiser", "SINUSOIDS"),
        needs=("denoiser_variant", "encoder"),
        config_only=True,
    )


@dataclass
class ClassifierOptions:
    """A classifier of noised latents; see model/classifier."""

    classifier_dim: int = flag(128, "width, divisible by 64", unit="channels", at_least=1)
    classifier_depth: int = flag(2, "blocks of attention and feed-forward", unit="blocks", at_least=1, at_most=1000)
    classifier_pooling: str = flag(
        "mean",
        "input of the label's layer: the mean over the text, or its first position",
        choices=("mean", "first"),
        config_only=True,
    )
    classifier_dropout: float = flag(0.1, "dropout while training", at_least=0, at_most=1, config_only=True)

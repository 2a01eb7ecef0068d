"""Flags of the autoencoders: one dataclass for each kind, and those of all."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys


@dataclass
class AutoencoderOptions:
    """Those of every kind."""

    autoencoder: str = flag(
        "perceiver", "kind of autoencoder", choices=table_keys("latent_models.autoencoders", "AUTOENCODERS")
    )
    lm_mode: str = flag(
        "freeze",
        "freeze: train the autoencoder only; ft: train the language model, too; decoder: train only the decoder of "
        "--resume_dir, so that its latents, and denoisers trained on them, stay valid",
        choices=("freeze", "ft", "decoder"),
        published=True,
    )
    max_latent_noise: float = flag(
        0.0,
        "largest sigma of the noise added to the latents on which the decoder trains, to make it robust to sampling "
        "errors; 0: no noise",
        at_least=0,
        at_most=1,
    )
    latent_noise_prob: float = flag(
        0.5,
        "share of the texts whose latents are noised with --max_latent_noise",
        at_least=0,
        at_most=1,
        needs="max_latent_noise",
    )


@dataclass
class ReconstructionOptions:
    whole_logits: bool = flag(
        False,
        "hold the logits of a whole batch in memory instead of some tokens at a time",
        may_change="both",
        config_only=True,
    )


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


@dataclass
class LatentLossOptions:
    """Losses beside reconstruction, for any autoencoder; see losses.py. All are off by default."""

    feature_matching_weight: float = flag(
        0.0,
        "weight of the error with which the decoder's memory predicts the frozen encoder's states of every token "
        "(COSMOS), with --lm_mode ft those of the encoder as it is before training; 0: off",
        at_least=0,
    )
    alignment_weight: float = flag(
        0.0,
        "weight of 1 - cosine between a linear map of a text's latents and the mean state of a layer of a frozen model "
        "(REPA, VA-VAE); 0: off",
        at_least=0,
    )
    alignment_model: str | None = flag(
        None,
        "model of --alignment_weight, any encoder or causal model, a local folder or a hub id; unset: the encoder of "
        "--enc_dec_model as it is before training",
        needs="alignment_weight",
        may_change="resume",
    )
    alignment_layer: int | None = flag(
        None,
        "layer of --alignment_model whose states are compared, 0 for its embeddings, -1 for the last; unset: the last",
        needs="alignment_weight",
        config_only=True,
    )
    kl_weight: float = flag(
        0.0,
        "weight of the KL divergence of the latents from a standard normal, in nats per token: latents get a mean and "
        "a variance, and 1 is the evidence lower bound; 0: off, latents are points",
        at_least=0,
    )


@dataclass
class LatentAugmentationOptions:
    """Changes of a training batch on its way through an autoencoder; see augmentations.py. All are off by default."""

    state_mask_prob: float = flag(
        0.0, "share of the encoder's states that are set to zero before compression", at_least=0, at_most=1
    )
    state_noise: float = flag(
        0.0,
        "sigma of the noise on the encoder's states before compression, relative to their root mean square; 0: none",
        at_least=0,
    )
    latent_mask_prob: float = flag(
        0.0, "share of the latents that are set to zero before they are decoded", at_least=0, at_most=1
    )
    token_dropout: float = flag(
        0.0,
        "share of the tokens at the language model's decoder that are hidden, so that it needs its latents",
        at_least=0,
        at_most=1,
    )
    noise_level_conditioning: bool = flag(
        False,
        "tell the decoder the sigma of the noise of --max_latent_noise, by an embedding that is added to the latents; "
        "--decoder_noise then chooses it for sampling (unset: 0)",
        needs="max_latent_noise",
    )

"""Flags of the latent spaces."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys


@dataclass
class SentenceOptions:
    """A space of frozen embeddings; see latent_models/spaces/sentence."""

    encoder_model: str | None = flag(
        None,
        "frozen model whose embeddings of texts are the latents of --latent_space sentence: any encoder, the encoder "
        "of an encoder-decoder, or a causal model; a local folder (python -m latent_models.pretrained minilm-l6) or a "
        "hub id",
        may_change="both",
        space="frozen",
    )
    encoder_layer: int | None = flag(
        None,
        "layer of --encoder_model whose states are pooled, 0 for its embeddings, 1 for the first layer, -1 for the "
        "last; unset: the last",
        needs="encoder_model",
        space="frozen",
    )
    pooling: str = flag(
        "mean",
        "how the states of a text become latents; mean: their mean, with norm 1; first, last: the state of that token; "
        "segments: the means of --num_sentence_latents equal parts; sentences: the mean of each sentence; learned: "
        "attention queries that train with the decoder, for which the encoder runs at every step of stage 1",
        choices=table_keys("latent_models.pooling", "POOLINGS"),
        needs="encoder_model",
        space="frozen",
    )
    num_sentence_latents: int | None = flag(
        None,
        "latents of a text, or the most sentences, with --pooling segments, sentences or learned",
        unit="latents",
        at_least=1,
        needs=("pooling", "segments", "sentences", "learned"),
        space="frozen",
    )
    latent_scaling: str = flag(
        "standard",
        "none; standard: center each channel, and divide all by one standard deviation; whiten: make the channels "
        "independent, each with variance 1; half_whiten: half way, so that noise hides directions of little variance "
        "first",
        choices=("none", "standard", "half_whiten", "whiten"),
        space="frozen",
    )


@dataclass
class LatentOptions:
    latent_space: str | None = flag(
        None,
        "where diffusion happens: compressed latents of the autoencoder in --latent_model_path, frozen embeddings of "
        "sentences that the decoder there reads (each the default with such a run), states of the encoder of "
        "--enc_dec_model (the default without), or token embeddings that train with the denoiser",
        choices=table_keys("pipelines.builders.spaces", "SPACES"),
    )
    latent_model_path: str | None = flag(
        None,
        "run folder of a trained autoencoder, or of a text decoder (python -m pipelines.train_text_decoder); unset: "
        "diffusion on the encoder's own states",
        may_change="both",
        space="frozen",
        published=True,
    )
    normalize_latent: bool = flag(
        False, "center and scale latents by statistics of the training set", space="frozen", published=True
    )
    normalize_batches: int = flag(
        50,
        "batches from which --normalize_latent estimates its statistics",
        unit="batches",
        at_least=1,
        needs="normalize_latent",
        config_only=True,
    )
    latent_cache_dir: str | None = flag(
        None,
        "folder of encoded corpora; unset: encoded/ in --cache_dir",
        needs=("no_latent_cache", False),
        may_change="both",
        student="may_differ",
        space="frozen",
    )
    no_latent_cache: bool = flag(False, "encode each batch instead of once per corpus", student="may_differ")
    latents_on_device: str = flag(
        "auto",
        "keep cached latents in the device's memory; auto: on CUDA, up to a fifth of what is free",
        choices=("auto", "on", "off"),
        needs=("no_latent_cache", False),
        may_change="resume",
        student="may_differ",
        config_only=True,
    )


@dataclass
class EmbeddingOptions:
    """The space of token embeddings; see latent_models/spaces/embeddings."""

    embedding_dim: int | None = flag(
        None,
        "width of a token embedding; unset: 128, or that of the pretrained ones. Another width projects these",
        unit="channels",
        at_least=1,
    )
    embedding_init: str = flag(
        "random",
        "random, or the language model whose input embeddings initialize the table: a local folder or a hub id; its "
        "tokenizer is then the default of --vocab",
    )
    embedding_std: float = flag(
        1.0,
        "initial standard deviation of embeddings, pretrained ones rescaled; the noise of the process has 1",
        above=0,
        config_only=True,
    )
    freeze_embeddings: bool = flag(False, "do not train the table of embeddings; a projection still trains")
    normalize_embeddings: bool = flag(
        False,
        "rescale every embedding to norm sqrt(embedding_dim), so that embeddings cannot collapse relative to the noise",
    )
    rounding_head: str = flag(
        "inner",
        "scores of tokens: inner product with their embeddings, or negative squared distance to them",
        choices=table_keys("latent_models.spaces.rounding", "ROUNDING_HEADS"),
    )
    padding: str = flag(
        "masked",
        "masked: padding has no attention and no loss, lengths of samples are drawn from those of the training "
        "texts; generated: padding is generated like any token, as published",
        choices=("masked", "generated"),
    )


@dataclass
class FrozenModelOptions:
    """Where the frozen models of a text decoder are now."""

    encoder_model: str | None = flag(
        None,
        "encoder of the frozen embeddings of --latent_model_path, a local folder or a hub id; unset: where that run "
        "found it",
        may_change="both",
        student="may_differ",
        space="frozen",
    )
    decoder_model: str | None = flag(
        None,
        "language model that decodes the latents of --latent_model_path, a local folder or a hub id; unset: "
        "where that run found it",
        may_change="both",
        student="may_differ",
        space="frozen",
    )

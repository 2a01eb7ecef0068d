"""Flags of what the latent models share: the language model, caches, sources, and baselines without latents."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


@dataclass
class LanguageModelOptions:
    enc_dec_model: str = flag(
        "facebook/bart-base",
        "encoder-decoder language model: a local folder or a hub id",
        may_change="both",
        student="may_differ",
        published=True,
    )
    max_seq_len: int = flag(64, "longest text; longer ones are truncated", unit="tokens", at_least=1, published=True)
    target_language: str | None = flag(
        None,
        "language of the texts for models with language codes (mBART), such as de_DE or de; unset: "
        "that of the corpus or tokenizer",
    )


@dataclass
class CacheOptions:
    """Where encoded corpora are on disk, and how large one may be."""

    cache_dir: str | None = flag(
        None,
        "folder of encoded corpora, which all runs share; unset: $LATENT_DIFFUSION_CACHE, else "
        "~/.cache/latent-text-diffusion. `python -m pipelines.caches list` shows them",
        may_change="both",
        student="may_differ",
        space="frozen",
    )
    max_cache_gb: float = flag(
        50.0,
        "the largest cache that is written for the texts, or for the sources, of a split; what needs more is encoded "
        "at each step",
        unit="GB",
        at_least=0,
        may_change="both",
        student="may_differ",
        space="frozen",
    )


@dataclass
class LatentCacheOptions(CacheOptions):
    """Latents of a corpus, and states of its sources, on disk; see latent_models/cache."""

    latent_cache_dtype: str = flag(
        "float16",
        "dtype of encoded corpora on disk; float16 and bfloat16 halve their size, and float16 changes losses less",
        choices=("float16", "bfloat16", "float32"),
        student="may_differ",
        space="frozen",
    )


@dataclass
class EncoderCacheOptions(CacheOptions):
    cache_encoder_states: str = flag(
        "no",
        "keep the frozen encoder's states of every training text on disk, in this precision, instead of "
        "encoding each batch; the size is printed before",
        choices=("no", "float16", "bfloat16", "float32"),
        may_change="both",
    )
    latent_cache_dir: str | None = flag(
        None,
        "folder of encoded corpora; unset: encoded/ in --cache_dir",
        may_change="both",
        student="may_differ",
        space="frozen",
    )
    states_on_device: str = flag(
        "auto",
        "keep cached encoder states in the device's memory; auto: on CUDA, up to a fifth of what is free",
        choices=("auto", "on", "off"),
        needs=("cache_encoder_states", "float16", "bfloat16", "float32"),
        may_change="both",
        config_only=True,
    )


@dataclass
class ContextOptions:
    """Sources of a corpus of pairs, and their encoder."""

    context_encoder: str | None = flag(
        None,
        "language model whose encoder encodes the source texts, a local folder or a hub id; unset: "
        "--enc_dec_model if given together with --latent_model_path, else the language model of the latents",
        may_change="both",
        student="may_differ",
        space="frozen",
    )
    train_context_encoder: bool = flag(
        False, "train the context encoder along with the denoiser, without a cache", space="frozen"
    )
    max_source_len: int | None = flag(
        None,
        "longest source; longer ones are truncated; unset: the limit of the corpus",
        unit="tokens",
        at_least=1,
        space="frozen",
    )
    source_language: str | None = flag(
        None,
        "language of the sources for a context encoder with language codes (mBART), such as de_DE or "
        "de; unset: that of the corpus",
    )
    ignore_sources: bool = flag(False, "ignore the sources of the corpus and train on its texts unconditionally")


@dataclass
class BaselineModelOptions:
    """A language model that is trained without latents: pretrained, or from scratch."""

    model: str | None = flag(
        None, "pretrained language model to fine-tune, a local folder or a hub id; unset: a small one from scratch"
    )
    tokenizer: str = flag(
        "bpe",
        "of a model from scratch: word or bpe, trained on the corpus, or the folder of a tokenizer, such as that of a "
        "run of stage 0",
        needs=("model", None),
    )
    vocab_size: int = flag(
        4000, "largest vocabulary of a tokenizer that is trained", unit="tokens", at_least=1, needs=("model", None)
    )
    d_model: int = flag(192, "width of a model from scratch", unit="channels", at_least=1, needs=("model", None))
    layers: int = flag(
        4,
        "layers of a model from scratch; of an encoder-decoder, those of the encoder and of the decoder",
        unit="layers",
        at_least=1,
        at_most=1000,
        needs=("model", None),
    )
    heads: int = flag(4, "attention heads of a model from scratch", unit="heads", at_least=1, needs=("model", None))
    lm_dropout: float = flag(
        0.1, "dropout of a model from scratch", at_least=0, at_most=1, needs=("model", None), config_only=True
    )
    max_seq_len: int = flag(64, "longest text; longer ones are truncated", unit="tokens", at_least=3)


@dataclass
class Seq2SeqModelOptions(BaselineModelOptions):
    """An encoder-decoder that is trained on pairs, pretrained or a BART from scratch; see latent_models/seq2seq."""

    model: str | None = flag(
        None,
        "pretrained encoder-decoder to fine-tune (BART, mBART, T5 or mT5), a local folder or a hub id; unset: a small "
        "BART from scratch",
    )
    source_language: str | None = flag(
        None,
        "language of the sources for models with language codes (mBART), such as de_DE or de; unset: that of the "
        "corpus, else that of the texts",
        needs="model",
    )
    target_language: str | None = flag(
        None,
        "language of the texts for models with language codes (mBART); unset: that of the corpus or tokenizer",
        needs="model",
    )

"""Flags of the language model and the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag, table_keys


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
class AutoencoderOptions:
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
class GenerationOptions:
    """How a language model generates texts; see latent_models/generation."""

    whole_batches: bool = flag(
        False,
        "decode every batch token by token until its longest text ends; otherwise finished texts leave the batch, and "
        "beam search over uncompressed latents batches texts of similar lengths",
        space="frozen",
        config_only=True,
    )
    kv_cache: str = flag(
        "dynamic",
        "cache of keys and values; dynamic: grows with the text; static: allocated once, so that transformers compiles "
        "the decoder on CUDA and decodes whole batches",
        choices=("dynamic", "static"),
        space="frozen",
    )
    generation_dtype: str = flag(
        "run",
        "precision of the language model while it generates; run: that of --mixed_precision; bf16: a bfloat16 copy of "
        "the model",
        choices=("run", "fp32", "bf16"),
        space="frozen",
    )
    speculative: str = flag(
        "auto",
        "auto: where the autoencoder has a draft model (python -m pipelines.train_draft_model), it drafts all "
        "tokens at once and greedy decoding verifies them, which gives the same texts sooner; off: token by token",
        choices=("auto", "off"),
    )
    draft_model: str | None = flag(
        None,
        "folder of a trained draft model; unset: the one in the autoencoder's folder",
        needs=("speculative", "auto"),
    )


@dataclass
class TokenDecodingOptions:
    """Settings of decoding strategies that go token by token, in place of their own."""

    top_p: float | None = flag(
        None,
        "--decoding nucleus draws each token from the likeliest ones that together have this probability; unset: 0.95",
        above=0,
        at_most=1,
        space="frozen",
    )
    top_k: int | None = flag(
        None,
        "--decoding nucleus draws each token from at most this many; 0: no limit; unset: that of the language model, "
        "mostly 50, and no limit of a text decoder or a causal one",
        unit="tokens",
        at_least=0,
        space="frozen",
    )
    temperature: float | None = flag(
        None,
        "--decoding nucleus divides logits by this: below 1 is less diverse; unset: that of the language model, mostly "
        "1",
        above=0,
        space="frozen",
    )
    repetition_penalty: float | None = flag(
        None,
        "divides the logit of a token that the text has already (or multiplies it, if negative); 1: none; unset: 1.2, "
        "and 1 with --decoding greedy, a text decoder or a causal language model",
        above=0,
        space="frozen",
    )
    no_repeat_ngram_size: int | None = flag(
        None,
        "no n-gram of this length occurs twice in a text; 0: all may; unset: 3, and 0 with --decoding greedy, a "
        "text decoder or a causal language model",
        unit="tokens",
        at_least=0,
        space="frozen",
    )
    min_new_tokens: int | None = flag(
        None,
        "shortest text; unset: 4, and 0 with --decoding greedy, a text decoder or a causal language model",
        unit="tokens",
        at_least=0,
        space="frozen",
    )


@dataclass
class SearchDecodingOptions(TokenDecodingOptions):
    """With those of beam search."""

    num_beams: int | None = flag(
        None, "beams of --decoding beam; unset: 4", unit="beams", at_least=1, at_most=1000, space="frozen"
    )
    length_penalty: float | None = flag(
        None,
        "--decoding beam divides the log-likelihood of a text by its length to this power: above 0 prefers long "
        "texts; unset: that of the language model, mostly 1",
        space="frozen",
    )


@dataclass
class DecodingOptions(SearchDecodingOptions):
    """Settings in place of those of a decoding strategy; see latent_models/generation/decoding."""

    decoder_noise: float | None = flag(
        None,
        "sigma of the noise that latents get before a decoder reads them, together with this sigma; unset: half of the "
        "--max_latent_noise that a decoder of --decoder_model was trained with, and 0 with --noise_level_conditioning",
        at_least=0,
        at_most=1,
        space="frozen",
    )
    decoder_candidates: int | None = flag(
        None,
        "texts that a decoder of --decoder_model writes for each latent, of which it keeps the one whose own latents "
        "are nearest; unset: 1",
        unit="texts",
        at_least=1,
        at_most=1000,
        space="frozen",
    )


@dataclass
class DraftModelOptions:
    """The network that drafts all tokens of a text at once; see latent_models/speculative/draft_model."""

    draft_model_dim: int | None = flag(
        None, "width, divisible by 32; unset: half the width of the language model", unit="channels", at_least=1
    )
    draft_model_depth: int = flag(2, "blocks of attention and feed-forward", unit="blocks", at_least=1, at_most=1000)


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
class PretrainingOptions:
    """Stage 0: a small BART from scratch."""

    tokenizer: str = flag(
        "word",
        "trained on the corpus: word splits at blanks and punctuation; bpe is byte-level subwords",
        choices=("word", "bpe"),
    )
    vocab_size: int = flag(2000, "largest vocabulary of the tokenizer", unit="tokens", at_least=1)
    d_model: int = flag(128, "width of the model", unit="channels", at_least=1)
    layers: int = flag(2, "layers of the encoder and of the decoder", unit="layers", at_least=1, at_most=1000)
    heads: int = flag(4, "attention heads", unit="heads", at_least=1)
    pos_init: str = flag(
        "random",
        "how learned positions start: random, or sinusoidal, the same sinusoids in encoder and decoder, from which "
        "long texts (a hundred tokens) are copied sooner and short ones (thirty) later",
        choices=("random", "sinusoidal"),
        config_only=True,
    )
    lm_dropout: float = flag(0.0, "dropout while pretraining", at_least=0, at_most=1, config_only=True)
    mask_prob: float = flag(
        0.1, "share of tokens that are masked in spans in the encoder's input", at_least=0, at_most=1
    )
    uncorrupted_prob: float = flag(
        0.5, "share of texts without corruption (plain copying)", at_least=0, at_most=1, config_only=True
    )
    random_token_prob: float = flag(
        0.1,
        "share of a batch that consists of random tokens, which can only be copied",
        at_least=0,
        at_most=1,
        config_only=True,
    )
    max_seq_len: int = flag(64, "longest text; longer ones are truncated", unit="tokens", at_least=1)


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


@dataclass
class TokenizerOptions:
    """The tokenizer of a space of token embeddings; see latent_models/tokenizers/from_flags."""

    vocab: str | None = flag(
        None,
        "word-level or byte-level: trained on the corpus; a folder or hub id of a Hugging Face tokenizer; a "
        "file with one token per line. Unset: that of the model of --embedding_init, or word-level",
    )
    vocab_size: int = flag(10000, "largest vocabulary that is trained", unit="tokens", at_least=1)
    vocab_min_frequency: int = flag(
        1, "least frequency of a word of a trained vocabulary", at_least=1, config_only=True
    )
    vocab_lowercase: bool = flag(False, "a trained vocabulary holds lower case only", config_only=True)
    vocab_strip_accents: bool = flag(
        False, "a trained vocabulary holds Latin letters without accents; other scripts keep marks", config_only=True
    )
    vocab_individual_digits: bool = flag(
        True, "a trained vocabulary holds the digits of a number one by one", config_only=True
    )
    max_unk_rate: float = flag(
        0.1,
        "largest share of unknown words in the corpus; a vocabulary with more is an error",
        at_least=0,
        at_most=1,
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

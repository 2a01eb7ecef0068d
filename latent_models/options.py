"""Flags of the language model and the autoencoder."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LanguageModelOptions:
    enc_dec_model: str = field(
        default="facebook/bart-base", metadata=dict(help="encoder-decoder language model: a local folder or a hub id")
    )
    max_seq_len: int = field(default=64, metadata=dict(help="longest text; what is longer is cut off", unit="tokens"))
    target_language: str | None = field(
        default=None,
        metadata=dict(
            help="of the texts, for models with language codes (mBART): de_DE or de; unset: the corpus' or tokenizer's"
        ),
    )


@dataclass
class AutoencoderOptions:
    num_encoder_latents: int = field(default=32, metadata=dict(help="latents per text", unit="latents"))
    num_decoder_latents: int | None = field(
        default=None,
        metadata=dict(
            help="must equal --num_encoder_latents, its default: the decoder expands each latent to one state",
            unit="latents",
        ),
    )
    dim_ae: int = field(default=256, metadata=dict(help="width of a latent", unit="channels"))
    num_layers: int = field(
        default=2, metadata=dict(help="depth of the Perceiver encoder and of the decoder", unit="layers")
    )
    l2_normalize_latents: bool = field(default=False, metadata=dict(help="rescale every latent to norm sqrt(dim_ae)"))
    lm_mode: str = field(
        default="freeze",
        metadata=dict(
            help="freeze: train the autoencoder alone; ft: the language model too; decoder: of --resume_dir only what "
            "writes texts, so that latents stay what they were and a denoiser of them stays good",
            choices=("freeze", "ft", "decoder"),
        ),
    )
    latent_noise: float = field(
        default=0.0,
        metadata=dict(
            help="train the decoder on latents noised up to this sigma too, so that it forgives what diffusion gets "
            "wrong; 0: on clean latents only",
            unit="probability",
        ),
    )
    latent_noise_prob: float = field(
        default=0.5, metadata=dict(help="share of the texts whose latents are noised", unit="probability")
    )


@dataclass
class ReconstructionOptions:
    whole_logits: bool = field(
        default=False,
        metadata=dict(help="hold the logits of a whole batch in memory instead of some tokens at a time"),
    )


@dataclass
class WritingOptions:
    """How a language model writes; see latent_models/writing."""

    whole_batches: bool = field(
        default=False,
        metadata=dict(
            help="decode every batch to the end of its longest text, token by token; without, texts that have ended "
            "leave it, and beams of uncompressed latents are searched in batches of like lengths"
        ),
    )
    decoding_cache: str = field(
        default="dynamic",
        metadata=dict(
            help="keys and values of tokens already written: dynamic grows with them; static is allocated once, so "
            "that transformers compiles the decoder on CUDA, and implies --whole_batches",
            choices=("dynamic", "static"),
        ),
    )
    decoding_precision: str = field(
        default="run",
        metadata=dict(
            help="run: bf16 where --mixed_precision says so; bf16 holds a copy of the language model in bfloat16",
            choices=("run", "fp32", "bf16"),
        ),
    )
    drafting: str = field(
        default="auto",
        metadata=dict(
            help="auto: where the autoencoder has a drafter (python -m pipelines.train_drafter), it writes all tokens "
            "at once and greedy decoding verifies them, which gives the same texts sooner; off: token by token",
            choices=("auto", "off"),
        ),
    )
    drafter: str | None = field(
        default=None,
        metadata=dict(
            help="folder of a trained drafter, for an autoencoder without its own; unset: drafter/ in its folder"
        ),
    )


@dataclass
class DrafterOptions:
    """The network that writes all tokens of a text at once; see latent_models/drafting."""

    drafter_dim: int | None = field(
        default=None,
        metadata=dict(
            help="width, divisible by 32; unset: half the width of the language model", unit="channels", at_least=1
        ),
    )
    drafter_depth: int = field(
        default=2, metadata=dict(help="blocks of attention and feed-forward", unit="blocks", at_least=1)
    )


@dataclass
class EncoderCacheOptions:
    cache_encoder_states: str = field(
        default="no",
        metadata=dict(
            help="keep the frozen encoder's states of every training text on disk, in this precision, instead of "
            "encoding each batch; the size is said first",
            choices=("no", "float16", "float32"),
        ),
    )
    latent_cache_dir: str | None = field(
        default=None, metadata=dict(help="where encoded corpora are kept; unset: latent_cache/ in the run folder")
    )
    states_on_device: str = field(
        default="auto",
        metadata=dict(
            help="keep cached encoder states in the device's memory; auto: on CUDA, up to a fifth of what is free",
            choices=("auto", "on", "off"),
        ),
    )


@dataclass
class LatentOptions:
    latent_space: str | None = field(
        default=None,
        metadata=dict(
            help="where diffusion happens: compressed latents of --latent_model_path (its default), states of the "
            "encoder of --enc_dec_model (the default without), or embeddings of tokens, learned along",
            choices=("compressed", "states", "embeddings"),
        ),
    )
    latent_model_path: str | None = field(
        default=None,
        metadata=dict(help="run folder of a trained autoencoder; unset: diffusion on the encoder's own states"),
    )
    normalize_latent: bool = field(
        default=False, metadata=dict(help="centre and scale latents by statistics of the training set")
    )
    normalize_batches: int = field(
        default=50, metadata=dict(help="batches that --normalize_latent is estimated over", unit="batches")
    )
    latent_cache_dir: str | None = field(
        default=None, metadata=dict(help="where encoded corpora are kept; unset: latent_cache/ in the run folder")
    )
    no_latent_cache: bool = field(
        default=False, metadata=dict(help="encode each batch anew instead of once per corpus")
    )
    latents_on_device: str = field(
        default="auto",
        metadata=dict(
            help="keep cached latents in the device's memory; auto: on CUDA, up to a fifth of what is free",
            choices=("auto", "on", "off"),
        ),
    )


@dataclass
class ContextOptions:
    """Sources of a corpus of pairs, and what reads them."""

    context_encoder: str | None = field(
        default=None,
        metadata=dict(
            help="language model whose encoder reads the source texts, a local folder or a hub id; unset: "
            "--enc_dec_model typed beside --latent_model_path, else the language model of the latents"
        ),
    )
    train_context_encoder: bool = field(
        default=False, metadata=dict(help="train the context encoder along with the denoiser, without a cache")
    )
    max_source_len: int | None = field(
        default=None,
        metadata=dict(help="longest source, what is longer is cut off; unset: as the corpus says", unit="tokens"),
    )
    source_language: str | None = field(
        default=None,
        metadata=dict(
            help="of the sources, for a context encoder with language codes (mBART): de_DE or de; unset: the corpus's"
        ),
    )
    ignore_sources: bool = field(
        default=False, metadata=dict(help="leave the sources of the corpus aside: learn its texts unconditionally")
    )


@dataclass
class PretrainingOptions:
    """Stage 0: a small BART from scratch."""

    tokenizer: str = field(
        default="word",
        metadata=dict(
            help="trained on the corpus: word splits at blanks and punctuation; bpe is byte-level subwords",
            choices=("word", "bpe"),
        ),
    )
    vocab_size: int = field(default=2000, metadata=dict(help="largest vocabulary of the tokenizer", unit="tokens"))
    d_model: int = field(default=128, metadata=dict(help="width of the model", unit="channels"))
    layers: int = field(default=2, metadata=dict(help="layers of the encoder and of the decoder", unit="layers"))
    heads: int = field(default=4, metadata=dict(help="attention heads", unit="heads"))
    positions: str = field(
        default="random",
        metadata=dict(
            help="how learned positions start: random, or waves, the same sinusoids in encoder and decoder, from which "
            "long texts (a hundred tokens) are copied sooner and short ones (thirty) later",
            choices=("random", "waves"),
        ),
    )
    lm_dropout: float = field(default=0.0, metadata=dict(help="dropout while pretraining", unit="probability"))
    mask_prob: float = field(
        default=0.1, metadata=dict(help="share of tokens hidden by spans from the encoder", unit="probability")
    )
    clean_prob: float = field(
        default=0.5, metadata=dict(help="share of texts that are shown uncorrupted (plain copying)", unit="probability")
    )
    drill_prob: float = field(
        default=0.1,
        metadata=dict(
            help="share of a batch that is random token strings, which can only be copied", unit="probability"
        ),
    )
    max_seq_len: int = field(default=64, metadata=dict(help="longest text; what is longer is cut off", unit="tokens"))


@dataclass
class TokenizerOptions:
    """Which tokenizer a space of token embeddings has; see latent_models/tokenizers/choice."""

    vocab: str | None = field(
        default=None,
        metadata=dict(
            help="word-level or byte-level: trained on the corpus; a folder or hub id of a Hugging Face tokenizer; a "
            "file with one token per line. Unset: that of the model of --embedding_init, or word-level"
        ),
    )
    vocab_size: int = field(default=10000, metadata=dict(help="largest vocabulary that is trained", unit="tokens"))
    vocab_min_frequency: int = field(
        default=1, metadata=dict(help="words that the corpus holds less often stay unknown", unit="times")
    )
    vocab_lowercase: bool = field(default=True, metadata=dict(help="a trained vocabulary holds lower case only"))
    vocab_strip_accents: bool = field(default=True, metadata=dict(help="a trained vocabulary holds no accents"))
    vocab_individual_digits: bool = field(
        default=True, metadata=dict(help="a trained vocabulary holds the digits of a number one by one")
    )
    max_unknown: float = field(
        default=0.1,
        metadata=dict(help="refuse a vocabulary that does not know this share of the corpus", unit="probability"),
    )


@dataclass
class EmbeddingOptions:
    """The space of token embeddings; see latent_models/embeddings."""

    embedding_dim: int | None = field(
        default=None,
        metadata=dict(
            help="width of a token embedding; unset: 128, or that of the pretrained ones. Another width projects these",
            unit="channels",
        ),
    )
    embedding_init: str = field(
        default="random",
        metadata=dict(
            help="random, or the language model whose input embeddings to begin with: a local folder or a hub id; its "
            "tokenizer is then the default of --vocab"
        ),
    )
    embedding_std: float = field(
        default=1.0,
        metadata=dict(
            help="standard deviation of embeddings at first, pretrained ones rescaled; the noise of the process has 1"
        ),
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata=dict(help="leave the table of embeddings as it is; a projection is trained all the same"),
    )
    normalize_embeddings: bool = field(
        default=False,
        metadata=dict(
            help="keep every embedding at norm sqrt(embedding_dim), so that they cannot shrink into the noise"
        ),
    )
    rounding_head: str = field(
        default="inner",
        metadata=dict(
            help="scores of tokens: inner product with their embeddings, or negative squared distance to them",
            choices=("inner", "distance"),
        ),
    )
    padding: str = field(
        default="masked",
        metadata=dict(
            help="masked: padding is neither seen nor learned, lengths of samples are drawn from those of the training "
            "texts; generated: padding is a token like any other and is sampled, as published",
            choices=("masked", "generated"),
        ),
    )

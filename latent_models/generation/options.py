"""Flags of generation: how a language model writes a text from latents."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


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

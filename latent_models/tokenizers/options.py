"""Flags of the tokenizer that is trained or read."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


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

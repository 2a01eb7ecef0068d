"""Flags of the pretraining of a small BART."""

from __future__ import annotations

from dataclasses import dataclass

from utils.cli.flags import flag


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

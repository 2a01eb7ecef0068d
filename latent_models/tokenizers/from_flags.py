"""The tokenizer of the flags, trained on a corpus or loaded, and its coverage of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from latent_models.tokenizers.files import load_tokenizer
from latent_models.tokenizers.options import TokenizerOptions
from latent_models.tokenizers.training import KINDS, TokenizerTraining, train_tokenizer
from utils.errors import UserError

_MEASURED = 50_000  # texts that the coverage is measured on, evenly spaced


def make_tokenizer(
    options: TokenizerOptions, texts: Sequence[str], max_length: int, init: str = "random"
) -> PreTrainedTokenizerFast:
    """The tokenizer of the flags: trained on `texts`, or loaded. max_length: in tokens. init: --embedding_init."""
    vocab = options.vocab or ("word-level" if init == "random" else init)
    if vocab not in KINDS:
        return load_tokenizer(vocab, max_length, "--vocab" if options.vocab else "--embedding_init")
    how = TokenizerTraining(
        options.vocab_size,
        options.vocab_min_frequency,
        options.vocab_lowercase,
        options.vocab_strip_accents,
        options.vocab_individual_digits,
    )
    return train_tokenizer(texts, vocab, how, max_length)


def unknown_rate(tokenizer: Any, texts: Sequence[str]) -> float:
    """Rate of unknown words in some texts, in [0, 1]; special tokens do not count."""
    if tokenizer.unk_token_id is None or not texts:
        return 0.0
    some = list(texts[:: max(1, -(-len(texts) // _MEASURED))])
    rows = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    total = sum(map(len, rows))
    return sum(row.count(tokenizer.unk_token_id) for row in rows) / max(total, 1)


def check_coverage(tokenizer: Any, texts: Sequence[str], options: TokenizerOptions) -> float:
    """The rate of unknown words, for the log; UserError if it is too large."""
    share = unknown_rate(tokenizer, texts)
    if share > options.max_unk_rate:
        raise UserError(
            f"the vocabulary of {len(tokenizer):,} tokens (--vocab) lacks {100 * share:.1f} % of the words of the "
            f"corpus, more than --config max_unk_rate={options.max_unk_rate:g}: raise --vocab_size, lower "
            "--config vocab_min_frequency=N, or take --vocab byte-level"
        )
    return share

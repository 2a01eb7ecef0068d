"""Differences between encoder-decoder language models: a row for each family, and language codes.

FAMILIES holds a row for each `model_type` of a configuration.

Multilingual models with one vocabulary (mBART) have language codes. The tokenizer puts the code of its language beside
each text, and decoding must start with the same code:

    mBART-50    code text </s>    decoding starts with </s>, and its first token is forced to be the code
    mBART       text </s> code    decoding starts with the code

Liu et al. 2020, arXiv:2001.08210; Tang et al. 2020, arXiv:2008.00401. The order is read off the tokenizer's output, not
its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from utils.errors import UserError

MODEL_FLAG = "--enc_dec_model"


@dataclass(frozen=True)
class Family:
    """Properties of one family of language models."""

    width: str = "d_model"  # configuration key of the encoder's width
    positions: str | None = None  # configuration key of the longest input; None: relative positions, no limit
    unsafe_dtypes: tuple[torch.dtype, ...] = ()  # autocast dtypes in which its states overflow

    def dim(self, config: Any) -> int:
        """Width of an encoder state."""
        return getattr(config, self.width)

    def max_length(self, config: Any) -> int | None:
        """Longest input in tokens, or None where there is no limit."""
        return getattr(config, self.positions) if self.positions else None


FAMILIES = {
    "bart": Family(positions="max_position_embeddings"),
    "mbart": Family(positions="max_position_embeddings"),
    "t5": Family(unsafe_dtypes=(torch.float16,)),  # its feed-forward layers overflow
    "mt5": Family(unsafe_dtypes=(torch.float16,)),
}


def family_of(config: Any, name: str, flag: str = MODEL_FLAG) -> Family:
    """The row of a configuration; UserError for a family that has none. flag: the flag that named the model."""
    try:
        return FAMILIES[config.model_type]
    except KeyError:
        raise UserError(
            f"{name} is a {config.model_type!r} model, which is not an encoder-decoder that is supported here: "
            f"give {flag} a model of type {', '.join(FAMILIES)}"
        ) from None


# ------------------------------------------------------------------------------------------------ language codes

LANGUAGE_FLAG = "--target_language"


class DecodingStart(NamedTuple):
    """The tokens that decoding in a language starts with; None: those of the model's configuration."""

    start_id: int | None = None
    forced_bos_id: int | None = None


def language_codes(tokenizer: Any) -> list[str]:
    """The language codes in a tokenizer's vocabulary; empty where it has none."""
    known = getattr(tokenizer, "lang_code_to_id", None) or {}
    return sorted(code for code, number in known.items() if number not in (None, tokenizer.unk_token_id))


def resolve_language(tokenizer: Any, wanted: str | None, name: str, flag: str = LANGUAGE_FLAG) -> str | None:
    """The code of the wanted language, else that of the language that the tokenizer was saved with.

    wanted: a code (de_DE), its first part (de), or None. Returns None for a tokenizer without language codes.
    Raises UserError, in one line, if the tokenizer lacks the language, or where none is set.
    """
    known = language_codes(tokenizer)
    if not known:
        return None
    # the tokenizer class defaults to English; only a language in its files counts
    wanted = wanted or tokenizer.init_kwargs.get("src_lang")
    if not wanted:
        raise UserError(
            f"{name} is multilingual, and the language of the texts is not set: give {flag}, one of {', '.join(known)}"
        )
    wish = wanted.lower().replace("-", "_")
    found = [code for code in known if wish in (code.lower(), code.lower().partition("_")[0])]
    if not found:
        raise UserError(f"{name} does not support the language {wanted!r}: give {flag}, one of {', '.join(known)}")
    return found[0]


def set_language(tokenizer: Any, code: str) -> DecodingStart:
    """Set the language of a tokenizer; returns the tokens that decoding in it starts with."""
    tokenizer.src_lang = tokenizer.tgt_lang = code
    number = tokenizer.lang_code_to_id[code]
    before_the_text = tokenizer("")["input_ids"][0] == number
    return DecodingStart(forced_bos_id=number) if before_the_text else DecodingStart(start_id=number)

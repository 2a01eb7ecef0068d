"""Ids of a tokenizer's start, end and separator tokens, and of one that stands for tokens that are not given."""

from __future__ import annotations

from typing import Any


def start_id(tokenizer: Any) -> int | None:
    """Id of the token that starts a text, or None."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id


def end_id(tokenizer: Any) -> int | None:
    """Id of the token that ends a text, or None."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def separator_id(tokenizer: Any) -> int | None:
    """Id of the token between two texts, or None."""
    return tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id


def filler_id(tokenizer: Any) -> int:
    """Id of the token at a place whose token is not given: a mask, else an unknown word, else padding."""
    names = ("mask_token_id", "unk_token_id", "pad_token_id")
    return next(i for name in names if (i := getattr(tokenizer, name, None)) is not None)

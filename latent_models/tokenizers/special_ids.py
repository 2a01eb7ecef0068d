"""Ids of a tokenizer's start, end and separator tokens."""

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

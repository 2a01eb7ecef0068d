"""Ids of a tokenizer's start, end and separator tokens, of one that stands for tokens that are not given, and the
largest one that a model has to know."""

from __future__ import annotations

from typing import Any

from utils.tokenizer_fingerprint import ROLES


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


def largest_id(tokenizer: Any, num_embeddings: int) -> int:
    """The largest id that a text, or what stands around it, may have.

    Special tokens that were added behind the embeddings of a model do not count, such as the <image_soft_token> of
    Gemma 3, whose text models do not know it: with split_special_tokens no text contains them. They do count where the
    tokenizer pads with them, or puts them around a text.
    """
    ids = set(tokenizer.get_vocab().values())
    if max(ids, default=0) >= num_embeddings:
        used = {getattr(tokenizer, f"{role}_token_id", None) for role in ROLES} | {*tokenizer("")["input_ids"]}
        ids -= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and i not in used}
    return max(ids, default=0)

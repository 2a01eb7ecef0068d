"""Ids of a tokenizer's start, end and separator tokens, and the check that a run gets the tokenizer it was trained
with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.tokenizer_fingerprint import canonical_config, fingerprint


def tokenizer_rules(tokenizer: Any) -> str:
    """Merges and normalizer as JSON, in which tokenizers of one vocabulary can differ; "" where there are neither."""
    metadata = canonical_config(tokenizer)
    found = {"merges": (metadata.get("model") or {}).get("merges"), "normalizer": metadata.get("normalizer")}
    return json.dumps(found, sort_keys=True) if any(found.values()) else ""


def check_same_tokenizer(tokenizer: Any, expected: str | None, run: Path | str, flag: str = "--vocab") -> None:
    """UserError where a run was trained with another tokenizer. expected: its fingerprint, if one is known."""
    if expected and fingerprint(tokenizer) != expected:
        raise UserError(
            f"{run} was trained with another tokenizer (other vocabulary, merges or normalization): "
            f"leave {flag} out, or give the one that the run folder holds"
        )


def start_id(tokenizer: Any) -> int | None:
    """Id of the token that starts a text, or None."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id


def end_id(tokenizer: Any) -> int | None:
    """Id of the token that ends a text, or None."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def separator_id(tokenizer: Any) -> int | None:
    """Id of the token between two texts, or None."""
    return tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id

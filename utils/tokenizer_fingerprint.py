"""Hash of everything in a tokenizer that decides which ids it gives a text.

A run keeps the hash; check_same_tokenizer compares it with the tokenizer that the run gets later.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from utils.errors import UserError

ROLES = ("bos", "eos", "cls", "sep", "pad", "unk", "mask")


def canonical_config(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary, merges, normalizer, pre-tokenizer, template and special tokens, for JSON.

    Without truncation and padding, which each call sets.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    metadata = {} if backend is None else json.loads(backend.to_str())
    for transient in ("truncation", "padding", "version"):
        metadata.pop(transient, None)
    metadata["vocabulary"] = sorted(tokenizer.get_vocab().items())
    metadata["roles"] = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    return metadata


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of canonical_config: equal only where two tokenizers give the same ids for every text."""
    return sha256(json.dumps(canonical_config(tokenizer), sort_keys=True).encode()).hexdigest()


def tokenizer_rules(tokenizer: Any) -> str:
    """Merges and normalizer as JSON, in which tokenizers of one vocabulary can differ; "" where there are neither."""
    metadata = canonical_config(tokenizer)
    found = {"merges": (metadata.get("model") or {}).get("merges"), "normalizer": metadata.get("normalizer")}
    return json.dumps(found, sort_keys=True) if any(found.values()) else ""


def splitting_rules(tokenizer: Any) -> str:
    """Pre-tokenizer and post-processor as JSON: what is looked up in the vocabulary, and which tokens stand around it.

    The fingerprints of language models that runs record leave them out, see tokenizer_rules; a cache needs them.
    """
    metadata = canonical_config(tokenizer)
    return json.dumps({key: metadata.get(key) for key in ("pre_tokenizer", "post_processor")}, sort_keys=True)


def check_same_tokenizer(tokenizer: Any, expected: str | None, run: Path | str, flag: str = "--vocab") -> None:
    """UserError if a run was trained with another tokenizer. expected: its fingerprint, if one is known."""
    if expected and fingerprint(tokenizer) != expected:
        raise UserError(
            f"{run} was trained with another tokenizer (other vocabulary, merges or normalization): "
            f"leave {flag} out, or give the one that the run folder holds"
        )

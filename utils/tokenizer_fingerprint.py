"""Hash of everything in a tokenizer that decides which ids it gives a text."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

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

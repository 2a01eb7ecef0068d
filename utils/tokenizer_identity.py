"""Which tokenizer is this: a hash of all that decides what it makes of a text."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

ROLES = ("bos", "eos", "cls", "sep", "pad", "unk", "mask")


def description(tokenizer: Any) -> dict[str, Any]:
    """Vocabulary, merges, normaliser, how words are split, template, special tokens; without what a call leaves behind
    (truncation and padding are set anew by each)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = {} if backend is None else json.loads(backend.to_str())
    for passing in ("truncation", "padding", "version"):
        facts.pop(passing, None)
    facts["vocabulary"] = sorted(tokenizer.get_vocab().items())
    facts["roles"] = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
    return facts


def fingerprint(tokenizer: Any) -> str:
    """SHA-256: equal only where both make the same ids of every text."""
    return sha256(json.dumps(description(tokenizer), sort_keys=True).encode()).hexdigest()

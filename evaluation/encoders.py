"""An encoder of sentences: one vector per text, for MAUVE on embeddings.

Any encoder of Hugging Face, from a folder or by hub id: the mean of its last hidden states over the tokens of a text,
scaled to unit norm. The first release of the published method reports MAUVE on such embeddings beside that of a causal
language model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from evaluation.disk_cache import RecentArrays, cached_arrays
from evaluation.mauve import Mauve
from evaluation.pretrained import load_pretrained
from evaluation.scorers import FEATURE_CACHE_SIZE, digest, length_batches
from utils import tokenizer_fingerprint
from utils.checkpoints import fingerprint

MAX_LENGTH = 256  # tokens of a text
POOLING = "mean over tokens, unit norm"


class SentenceEncoder:
    """An encoder in evaluation mode, with its tokenizer."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, name: str) -> None:
        """name: becomes part of metric keys."""
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        limit = getattr(model.config, "max_position_embeddings", None) or MAX_LENGTH
        self.max_length = min(MAX_LENGTH, limit)  # longer texts are truncated
        self.cache_dir: Path | None = None  # disk cache of the embeddings of references
        self._embeddings = RecentArrays(FEATURE_CACHE_SIZE)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and tokenizer: two results are comparable only if it agrees."""
        return digest([fingerprint(self.model)], tokenizer_fingerprint.fingerprint(self.tokenizer))

    def features(self, texts: Sequence[str], max_length: int = MAX_LENGTH, *, on_disk: bool = False) -> np.ndarray:
        """Return the embedding of each text, (n, d) float32 of unit norm; an empty text has that of no words.

        on_disk: also cache in self.cache_dir; for texts that are embedded again.
        """
        max_length = min(max_length, self.max_length)
        key = digest(texts, max_length)
        folder = self.cache_dir if on_disk else None

        def make() -> np.ndarray:
            name = f"embeddings-{self.fingerprint[:16]}-{key[:24]}" if folder else ""
            found = cached_arrays(folder, name, lambda: {"embeddings": self._embed(texts, max_length)})
            return found["embeddings"]

        return self._embeddings.get(key, make)

    def protocol(self, scores: Iterable[Mauve] = ()) -> dict[str, Any]:
        """Return everything that MAUVE on the embeddings depends on. scores: of which the smallest set counts."""
        smallest = min(scores, key=lambda score: score.n, default=None)
        settings = {} if smallest is None else smallest.protocol()
        return settings | {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "pooling": POOLING,
            "max_length": self.max_length,
        }

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        embeddings = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        if not texts:
            return embeddings
        device = next(self.model.parameters()).device
        ids = self.tokenizer(list(texts), truncation=True, max_length=max_length, verbose=False)["input_ids"]
        for rows in length_batches([len(row) for row in ids]):
            longest = max(len(ids[i]) for i in rows)
            if not longest:
                continue  # empty texts, in a tokenizer that adds no special tokens
            pad = self.tokenizer.pad_token_id or 0  # masked
            batch = torch.tensor([[*ids[i], *[pad] * (longest - len(ids[i]))] for i in rows], device=device)  # (B, T)
            attended = torch.tensor([[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in rows], device=device)
            states = self.model(input_ids=batch, attention_mask=attended).last_hidden_state.float()  # (B, T, d)
            mask = attended[..., None].to(states)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            embeddings[rows] = F.normalize(mean, dim=-1).cpu().numpy()
        return embeddings


def load(source: str | Path, *, device: str | torch.device = "cpu", flag: str = "--mauve_encoder") -> SentenceEncoder:
    """Load the encoder of a folder or hub id; of an encoder-decoder model, its encoder.

    Raises UserError, in one line, if there is no such model, or if its weights are not complete. flag: for messages.
    """
    found = load_pretrained(
        "AutoModel", source, what=flag, flag=flag, kind="encoder of texts", unused=("pooler.",),
        hint="; python -m latent_models.pretrained minilm-l6 makes one",
    )  # fmt: skip
    model = found.model
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return SentenceEncoder(model.to(device), found.tokenizer, found.name)

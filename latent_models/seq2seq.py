"""An encoder-decoder that is trained on pairs: the encoder reads a source, the decoder writes its text.

Sutskever et al. 2014, arXiv:1409.3215. In training the decoder reads the tokens of the text itself (teacher forcing).
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latent_models.families import resolve_language, set_language
from latent_models.language_models import LanguageModel


class Seq2SeqLM(nn.Module):
    """A language model with the tokenizers of sources and of texts, which differ for models with language codes."""

    def __init__(self, language_model: LanguageModel, source_language: str | None = None) -> None:
        """source_language: a code (de_DE) or its first part; None: that of the texts. Ignored by other models."""
        super().__init__()
        self.language_model = language_model
        self.source_language = language_model.language
        self.source_tokenizer = language_model.tokenizer
        if language_model.language is not None:
            code = resolve_language(
                self.source_tokenizer, source_language or language_model.language, self.name, "--source_language"
            )
            assert code is not None
            self.source_language, self.source_tokenizer = code, deepcopy(self.source_tokenizer)
            set_language(self.source_tokenizer, code)

    @property
    def model(self) -> Any:
        """The model of transformers."""
        return self.language_model.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of texts."""
        return self.language_model.tokenizer

    @property
    def name(self) -> str:
        return self.language_model.name

    @property
    def max_length(self) -> int | None:
        """Longest source, and longest text, in tokens; None where there is no limit."""
        return self.language_model.max_length

    def forward(self, source_ids: Tensor, source_mask: Tensor, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Negative log-likelihood of each text given its source, in nats, summed over its tokens: (B,) float32.

        source_ids, source_mask: (B, S); target_ids, target_mask: (B, T). Special tokens of both are among them.
        """
        model = self.language_model
        states = model.encode(source_ids, source_mask)  # (B, S, d_lm)
        nll = model.token_nll(model.decoder_states(states, source_mask, target_ids), target_ids)  # (B, T)
        return (nll * target_mask).sum(1)

    @torch.no_grad()
    def generate(self, sources: list[str], max_source: int, max_length: int, **decoding: Any) -> list[str]:
        """A text for each source, stripped of whitespace. max_source, max_length: in tokens, special ones included.

        decoding: see LanguageModel.generate.
        """
        model = self.language_model
        read = self.source_tokenizer(
            sources, max_length=max_source, truncation=True, padding=True, return_tensors="pt"
        ).to(model.device)
        mask = read["attention_mask"].bool()
        return model.generate(model.encode(read["input_ids"], mask), mask, max_length, **decoding)

    def save_pretrained(self, folder: Path) -> None:
        """Write an ordinary Hugging Face folder, which may serve as --model or as --enc_dec_model."""
        self.language_model.save_pretrained(folder)

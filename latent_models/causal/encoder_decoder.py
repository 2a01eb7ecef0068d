"""An encoder-decoder language model whose decoder writes the texts of latents, and the tokens around a text.

    T5       <pad> text </s>             start of the configuration, end of the tokenizer
    BART     </s> <s> text </s>          the tokenizer puts <s> before a text: it follows the start, and is not counted
    mBART    code text </s>              code: the language that the tokenizer was saved with
    mBART-50 </s> code text </s>

The encoder takes no part, but to show what its states are like (state_statistics).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from latent_models.causal.adapters import WithAdapters
from latent_models.causal.boundaries import Boundaries
from latent_models.families import language_codes
from latent_models.language_models import LanguageModel
from utils.errors import UserError

MEASURED = (8, 32)  # texts, tokens of each: the encoder's states of so many random tokens are measured


class EncoderDecoderLM(WithAdapters, LanguageModel):
    """An encoder-decoder language model, its tokenizer, and the tokens around a text."""

    adapter_task = "SEQ_2_SEQ_LM"

    def __init__(self, model: Any, tokenizer: Any, name: str, frozen: bool = True, language: str | None = None) -> None:
        """See LanguageModel. UserError for a multilingual model whose tokenizer was saved without a language."""
        if language is None and language_codes(tokenizer) and not tokenizer.init_kwargs.get("src_lang"):
            raise UserError(
                f"{name} is multilingual, and its tokenizer was saved without a language: set src_lang in its "
                "tokenizer_config.json, such as de_DE"
            )
        super().__init__(model, tokenizer, name, frozen, language)
        self.boundaries = boundaries_of_decoder(self)
        # the arguments of a call say how texts are generated: files of BART force an end, those of others limit tokens
        model.generation_config = GenerationConfig(
            decoder_start_token_id=self.start_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=self.boundaries.end_id,
            pad_token_id=self.pad_id,
        )

    def adapted_layers(self) -> str:
        """All linear layers of the decoder, as a regular expression of their names."""
        decoder = self.model.get_decoder()
        name = next(name for name, layer in self.model.named_modules() if layer is decoder)
        linear = {x.rpartition(".")[2] for x, layer in decoder.named_modules() if isinstance(layer, nn.Linear)}
        return rf"{re.escape(name)}\..*\.({'|'.join(map(re.escape, sorted(linear)))})"

    def add_adapters(self, rank: int, alpha: int) -> None:
        """As in WithAdapters, for the decoder."""
        super().add_adapters(rank, alpha)
        self.frozen = False

    def train_all(self) -> None:
        """Let all weights of the decoder train, and those that it shares: embeddings and output layer."""
        self.frozen = False
        for part in (self.model.get_decoder(), self.model.get_output_embeddings()):
            part.requires_grad_(True)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """Texts of token ids, without special tokens, stripped."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def state_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, both (d_lm,), of each channel of the encoder's states of random tokens.

        Random ones, since no texts are at hand where a decoder is built.
        """
        texts, length = MEASURED
        special = set(self.tokenizer.all_special_ids)
        size = min(len(self.tokenizer), self.model.config.vocab_size)
        words = torch.tensor([i for i in range(size) if i not in special], device=self.device)
        generator = torch.Generator().manual_seed(0)
        at = torch.randint(len(words), (texts, min(length, self.max_length or length)), generator=generator)
        ids = words[at.to(words.device)]
        states = self.encode(ids, torch.ones_like(ids)).flatten(0, 1).float()
        return states.mean(0), states.std(0)


def boundaries_of_decoder(lm: LanguageModel) -> Boundaries:
    """The tokens around a text. Raises UserError if nothing ends a text, or several tokens come before one."""
    tokenizer, end = lm.tokenizer, lm.tokenizer.eos_token_id
    if end is None:
        raise UserError(f"the tokenizer of {lm.name} has no end token, so no text would end: name another model")
    around = list(tokenizer("")["input_ids"])
    opening = around[: around.index(end)] if end in around else around
    if len(opening) > 1:
        raise UserError(
            f"the tokenizer of {lm.name} puts {len(opening)} tokens before a text, and its decoder begins with one: "
            "name another model"
        )
    known = {i for i in tokenizer.all_special_ids if i < lm.model.config.vocab_size}
    special = {*known, lm.start_id, lm.pad_id} - {end, *opening}
    return Boundaries(lm.start_id, end, lm.pad_id, (), tuple(sorted(special)), tuple(opening))

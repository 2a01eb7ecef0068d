"""An encoder-decoder language model as the decoder of latents: it attends to vectors that are made of them.

    memory: vectors of (z, sigma)                            z = sqrt(1 - sigma^2) x0 + sigma eps
    start | text | end, with the pretrained cross-attention to the memory

The vectors stand in for the states of the encoder, which does not run. The network that makes prefix vectors for a
causal language model makes them, and they start with the mean and the standard deviation that the encoder's states have
in each channel: cross-attention was trained to read these. They need no order, since each has a position of its own in
that network.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from latent_models.causal.encoder_decoder import EncoderDecoderLM
from latent_models.causal.generation import DecoderSettings
from latent_models.causal.latent_decoder import FLAG, LatentDecoder, in_text
from latent_models.causal.options import TextDecoderOptions
from latent_models.causal.prefix import PrefixNetwork
from utils.errors import UserError


class MemoryDecoder(LatentDecoder):
    """An encoder-decoder language model, and the network that turns latents into the memory of its decoder."""

    language_model = EncoderDecoderLM

    def __init__(self, lm: EncoderDecoderLM, memory: PrefixNetwork) -> None:
        super().__init__(lm)
        self.memory = memory
        self._computing = [nn.ModuleList([lm.model.get_decoder(), lm.model.get_output_embeddings()])]

    @classmethod
    def _around(cls, lm: EncoderDecoderLM, options: TextDecoderOptions, length: int, dim: int, seed: int) -> Self:
        statistics = None if lm.device.type == "meta" else lm.state_statistics()
        made = super()._around(lm, options, length, dim, seed)
        if statistics is not None:
            made.memory.start_like(*statistics)
        return made

    def check_length(self, max_seq_len: int, source_prompt: bool = False) -> None:
        """UserError if the longest text has more tokens than the language model allows; the memory has no limit."""
        if source_prompt:
            raise UserError(
                f"--source_prompt needs a causal language model, and {FLAG} {self.lm.name} is an encoder-decoder: "
                "leave it out, or name another model"
            )
        limit, needed = self.lm.max_length, max_seq_len + len(self.lm.boundaries.opening) - 1  # the end is not read
        if limit is not None and needed > limit:
            raise UserError(
                f"a text of --max_seq_len {max_seq_len} tokens is longer than the {limit} positions of {FLAG} "
                f"{self.lm.name}: lower --max_seq_len"
            )

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        input_ids: Tensor,
        targets: Tensor,
        mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """As in LatentDecoder. Hidden tokens are read as the tokenizer's mask token, or its unknown word."""
        lm, labels = self.lm, input_ids[:, 1:]  # the start is not predicted, the last token not read
        read = None if hidden is None else in_text(hidden, targets)[:, :-1]
        memory, memory_mask = self.memory(latents, mask, sigma)  # (B, P, W), (B, P)
        with self._frozen_in_half():
            states = lm.decoder_states(memory, memory_mask, labels, read)
            before = targets - targets // input_ids.shape[1] - 1  # the positions that predict them, in (B * (T - 1),)
            nll = lm.token_nll(states.flatten(0, 1)[None, before], input_ids.flatten()[None, targets])[0]
        return nll.new_zeros(input_ids.numel()).index_put((targets,), nll).view(input_ids.shape).sum(1)

    @torch.no_grad()
    def generate(
        self,
        latents: Tensor,
        sigma: Tensor,
        mask: Tensor | None = None,
        *,
        max_length: int,
        draw_rows: tuple[int, int] | None = None,
        prompt: Tensor | None = None,
        **decoding: Any,
    ) -> list[str]:
        assert prompt is None, "refused by check_length"
        settings = DecoderSettings.of(decoding)
        if not len(latents):
            return []
        kind = latents.device.type
        memory, memory_mask = self.memory(latents.to(self.memory.scale.dtype), mask, sigma)
        # Texts draw until the longest ends; a seed makes later draws independent of that.
        seed, rows = (int(torch.randint(2**62, ())), draw_rows) if settings.do_sample else (None, None)
        with torch.autocast(kind, enabled=False):  # the model is in its dtype already
            model = self._generating_model(self._dtype(kind))
            with torch.random.fork_rng(devices=[latents.device] if kind == "cuda" else []):
                if seed is not None:
                    torch.manual_seed(seed)
                found = self.lm.token_generator.generate_ids(
                    model, memory, memory_mask, {**self._arguments(settings, max_length), "draw_rows": rows}
                )
        return self.lm.decode([self._text_of(ids.tolist()) for ids in found])

    def _arguments(self, settings: DecoderSettings, max_length: int) -> dict[str, Any]:
        """Arguments of transformers' generate."""
        around = self.lm.boundaries
        first = 1 + len(around.opening)  # tokens before a text
        longest = first + max(1, max_length - 1)
        beyond = range(len(self.lm.tokenizer), self.lm.model.config.vocab_size)
        found: dict[str, Any] = dict(
            do_sample=settings.do_sample,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
            early_stopping=settings.early_stopping,
            repetition_penalty=settings.repetition_penalty,
            no_repeat_ngram_size=settings.no_repeat_ngram_size,
            min_length=min(first + settings.min_new_tokens, longest) if settings.min_new_tokens else 0,
            max_length=longest,
            suppress_tokens=[*around.forbidden, *beyond] or None,
            decoder_start_token_id=around.start_id,
            forced_bos_token_id=around.opening[0] if around.opening else None,
            eos_token_id=around.end_id,
            pad_token_id=around.pad_id,
        )
        if settings.do_sample:
            found |= dict(top_p=settings.top_p, top_k=settings.top_k, temperature=settings.temperature)
        return found

    def _text_of(self, ids: list[int]) -> list[int]:
        """Without start, opening, end and padding."""
        around = self.lm.boundaries
        ids = ids[1 + len(around.opening) :]
        return ids[: ids.index(around.end_id)] if around.end_id in ids else ids

    def _frozen_in_half(self) -> AbstractContextManager[None]:
        """As in LatentDecoder, where there are adapters. A frozen model has a copy of its own, see LanguageModel."""
        kind = self.device.type
        is_unsafe = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) in self.lm.family.unsafe_dtypes
        return nullcontext() if is_unsafe or not self.lm.has_adapters else super()._frozen_in_half()

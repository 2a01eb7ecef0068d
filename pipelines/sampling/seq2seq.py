"""Texts of an encoder-decoder, each for a source: drawn (nucleus), or searched (greedy, beam).

Text i of a seed depends on its source and (seed, i), up to rounding of matrix products: tokens are drawn for blocks of
a fixed number of texts. In float32, as those of a causal language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latent_models.generation.decoding import decoding_settings, given_settings
from latent_models.generation.options import SearchDecodingOptions
from latent_models.seq2seq import Seq2SeqLM
from pipelines.data.prompts import Prompts
from pipelines.sampling.blocks import segments
from pipelines.sampling.language_model import LanguageModelGenerator
from utils.preemption import check_interrupt
from utils.progress import Stopwatch
from utils.seeding import derive_seed

BLOCK = 250  # texts for which the numbers of a token are drawn at once


class Seq2SeqGenerator(LanguageModelGenerator):
    """Generates texts of an encoder-decoder."""

    lm: Seq2SeqLM

    def __init__(self, lm: Seq2SeqLM, prompts: Prompts, options: SearchDecodingOptions, **sizes: Any) -> None:
        """sizes: see LanguageModelGenerator."""
        super().__init__(lm, prompts, **sizes)
        self.options, self.decoding = options, decoding_settings(options)

    @property
    def prompt_tokenizer(self) -> Any:
        return self.lm.source_tokenizer

    def sampling_metadata(self) -> dict[str, Any]:
        return {
            "system": "encoder-decoder",
            "model": self.lm.name,
            **given_settings(self.options),
            "max_seq_len": self.max_length,
        }

    def _texts(
        self,
        prompts: list[str] | None,
        count: int,
        seed: int,
        first: int,
        strategies: Sequence[str],
        timer: Stopwatch,
    ) -> dict[str, list[str]]:
        check_interrupt()
        assert prompts is not None, "an encoder-decoder reads a source"
        found = {}
        for strategy in strategies:
            with timer.measure("sample", count):
                if self.decoding[strategy]["do_sample"]:
                    found[strategy] = self._draw(prompts, strategy, seed, first)
                else:  # all candidates of a source are the same
                    distinct = list(dict.fromkeys(prompts))
                    texts = dict(zip(distinct, self._generate(distinct, strategy), strict=True))
                    found[strategy] = [texts[prompt] for prompt in prompts]
        return found

    def _draw(self, prompts: list[str], strategy: str, seed: int, first: int) -> list[str]:
        texts: list[str] = []
        for part in segments(first, first + len(prompts), BLOCK):
            rows = prompts[len(texts) : len(texts) + len(part)]
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(derive_seed(seed, "seq2seq", strategy, part.block))
                texts += self._generate(rows, strategy, draw_rows=(part.first, part.size))
        return texts

    def _generate(self, sources: list[str], strategy: str, **more: Any) -> list[str]:
        return self.lm.generate(sources, self.max_prompt, self.max_length, **self.decoding[strategy], **more)

"""Texts of a causal language model.

Text i of a seed draws its random numbers from (seed, i) alone: neither the batch size nor the number of processes
changes it, up to rounding of matrix products: in float32, since autocast would convert all weights for every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latent_models.causal.generation import DecoderSettings
from latent_models.causal.model import CausalLM
from latent_models.causal.sampling import sample_ids
from latent_models.causal.sequences import prompt_ids
from latent_models.generation.decoding import decoding_settings, given_settings
from latent_models.generation.options import TokenDecodingOptions
from pipelines.data.prompts import Prompts
from pipelines.sampling.generator import SampleId, SampleOutput
from pipelines.sampling.language_model import LanguageModelGenerator
from pipelines.sampling.sampler_call import ConditionFn, SampleInputs
from utils.distributed import gather_objects
from utils.preemption import check_interrupt
from utils.progress import ProgressBar, Stopwatch
from utils.seeding import seeded_generator
from utils.train_eval import eval_mode


class CausalGenerator(LanguageModelGenerator):
    """Samples texts of a causal language model."""

    lm: CausalLM

    def __init__(self, lm: CausalLM, prompts: Prompts, options: TokenDecodingOptions, **sizes: Any) -> None:
        """sizes: see LanguageModelGenerator."""
        super().__init__(lm, prompts, **sizes)
        self.options = options
        strategies = decoding_settings(options, causal=True)
        self.decoding = {name: DecoderSettings.of(settings) for name, settings in strategies.items()}

    def sampling_metadata(self) -> dict[str, Any]:
        return {
            "system": "causal language model",
            "model": self.lm.name,
            "top_p": self.decoding["nucleus"].top_p,
            "temperature": self.decoding["nucleus"].temperature,
            **given_settings(self.options),
            "max_seq_len": self.max_length,
        }

    def sample(
        self,
        n: int,
        seed: int,
        strategies: Sequence[str] = ("nucleus",),
        conditions: ConditionFn | None = None,
        *,
        quiet: bool = False,
    ) -> SampleOutput:
        """n texts for each strategy. conditions: classes of a batch.

        Empty texts are counted and replaced by further ones, up to 2 n texts in all; those still missing stay empty.
        """
        found: dict[str, list[str]] = {strategy: [] for strategy in strategies}
        origins: dict[str, list[SampleId | None]] = {strategy: [] for strategy in strategies}
        empty = dict.fromkeys(strategies, 0)
        timer, done = Stopwatch(self.device), 0
        with ProgressBar("sample", n, unit="text", disable=quiet) as bar, eval_mode(self.lm):
            while done < 2 * n and (missing := [s for s in strategies if len(found[s]) < n]):
                need = min(n - min(len(found[s]) for s in missing), 2 * n - done)
                sizes = [min(self.batch_size, need - at) for at in range(0, need, self.batch_size)]
                mine = []
                for i, size in enumerate(sizes):
                    first = done + sum(sizes[:i])
                    classes = self._classes(conditions, seed, first, size)
                    if i % self.dist.world_size == self.dist.rank:
                        rows = self.prompts.texts(None, classes)
                        mine.append((first, self._texts(rows, size, seed, first, missing, timer)))
                        bar.advance_to(min(n, first + size), timer.note(self.dist.world_size))
                for first, texts in sorted(gather_objects(self.dist, mine), key=lambda part: part[0]):
                    for strategy in missing:
                        for row, text in enumerate(texts[strategy]):
                            if len(found[strategy]) < n:
                                empty[strategy] += not text
                                found[strategy] += [text] if text else []
                                origins[strategy] += [(first + row, 0)] if text else []
                done += need
        self.timer = timer = Stopwatch.merge_parallel(gather_objects(self.dist, [timer]))
        return SampleOutput(
            {strategy: (texts + [""] * n)[:n] for strategy, texts in found.items()},
            empty,
            {strategy: (rows + [None] * n)[:n] for strategy, rows in origins.items()},
            timer,
        )

    def _classes(self, conditions: ConditionFn | None, seed: int, first: int, size: int) -> list[int] | None:
        """The classes of texts number first, first + 1, ...: of each by itself, whatever the batch. Every rank calls
        it: conditions may record them.
        """
        if conditions is None:
            return None
        classes: list[int] = []
        for number in range(first, first + size):
            draws = seeded_generator(seed, "causal classes", number)
            condition = SampleInputs.coerce(conditions(number, 1, draws)).condition
            if condition is None or condition.class_id is None:
                return None
            classes += condition.class_id.tolist()
        return classes

    def _texts(
        self,
        prompts: list[str] | None,
        count: int,
        seed: int,
        first: int,
        strategies: Sequence[str],
        timer: Stopwatch,
    ) -> dict[str, list[str]]:
        """Texts number first, first + 1, ... of a seed."""
        check_interrupt()
        lm, longest, texts = self.lm, self.max_length - 1, {}
        before = [prompt.ids for prompt in prompt_ids(lm.tokenizer, lm.boundaries, prompts, count, self.max_prompt)]
        # a model has no positions for more, where a prompt leaves less room than the longest text
        room = longest if lm.max_length is None else max(1, min(longest, lm.max_length - max(map(len, before))))
        for strategy in strategies:
            settings = self.decoding[strategy]
            draws = draw_uniforms(seed, first, count, longest) if settings.do_sample else None
            with timer.measure("sample", count):
                ids = sample_ids(
                    lm.model,
                    lm.boundaries,
                    before,
                    draws,
                    max_new_tokens=room,
                    vocabulary=len(lm.tokenizer),
                    top_p=settings.top_p,
                    temperature=settings.temperature,
                    top_k=settings.top_k,
                    processors=settings.processors(lm.boundaries.end_id),
                )
                texts[strategy] = lm.decode(ids)
        return texts


def draw_uniforms(seed: int, first: int, count: int, length: int) -> Tensor:
    """(count, length) uniform in [0, 1): row i is a function of seed and first + i."""
    return torch.stack(
        [torch.rand(length, generator=seeded_generator(seed, "causal text", first + i)) for i in range(count)]
    )

"""Texts of a language model without latents, with the interface of `TextGenerator`, so that the same evaluation scores
them. CausalGenerator and Seq2SeqGenerator say how one is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.data.prompts import Prompts
from utils.distributed import DistContext, gather_objects
from utils.progress import ProgressBar, Stopwatch
from utils.train_eval import eval_mode

PromptsFn = Callable[[int, int], list[str]]  # (first, last) -> prompts of these examples


class LanguageModelGenerator(ABC):
    """Samples texts of a language model, given their prompts."""

    def __init__(
        self,
        lm: Any,
        prompts: Prompts,
        *,
        max_length: int,
        max_prompt: int,
        batch_size: int,
        device: torch.device,
        dist: DistContext | None = None,
    ) -> None:
        """max_length: longest text in tokens, start and end included. max_prompt: longest prompt in tokens.

        batch_size: texts per batch; it changes no text. dist: processes that share the batches; all of them must make
        the same calls, and each gets all texts.
        """
        self.lm, self.prompts = lm, prompts
        self.max_length, self.max_prompt, self.batch_size = max_length, max_prompt, batch_size
        self.device, self.dist = device, dist or DistContext(device=device)
        self.timer = Stopwatch(device)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of texts."""
        return self.lm.tokenizer

    @property
    def prompt_tokenizer(self) -> Any:
        return self.lm.tokenizer

    @abstractmethod
    def sampling_metadata(self) -> dict[str, Any]:
        """Entries of the protocol: everything that changes samples."""

    @abstractmethod
    def _texts(
        self,
        prompts: list[str] | None,
        count: int,
        seed: int,
        first: int,
        strategies: Sequence[str],
        timer: Stopwatch,
    ) -> dict[str, list[str]]:
        """Texts number first, first + 1, ... of a seed, `count` for each strategy."""

    def candidates(
        self, n: int, k: int, seed: int, strategies: Sequence[str], inputs: PromptsFn, *, quiet: bool = False
    ) -> dict[str, list[list[str]]]:
        """k independent texts for each of n examples: strategy -> n rows of k texts. Empty texts are kept."""
        per_batch, timer = max(1, self.batch_size // k), Stopwatch(self.device)
        mine: list[tuple[int, dict[str, list[str]]]] = []
        with ProgressBar("sample", n * k, unit="text", disable=quiet) as bar, eval_mode(self.lm):
            for first in range(self.dist.rank * per_batch, n, self.dist.world_size * per_batch):
                last = min(first + per_batch, n)
                rows = [prompt for prompt in inputs(first, last) for _ in range(k)]
                mine.append((first, self._texts(rows, len(rows), seed, first * k, strategies, timer)))
                bar.advance_to(last * k, timer.note(self.dist.world_size))
        found: dict[str, list[list[str]]] = {strategy: [] for strategy in strategies}
        for _, texts in sorted(gather_objects(self.dist, mine), key=lambda part: part[0]):
            for strategy, made in texts.items():
                found[strategy] += [made[i : i + k] for i in range(0, len(made), k)]
        self.timer = Stopwatch.merge_parallel(gather_objects(self.dist, [timer]))
        return found


class PromptSources:
    """Sources of pairs as prompts; see pipelines.sampling.inputs.Sources."""

    def __init__(self, generator: LanguageModelGenerator) -> None:
        self.generator = generator

    def make_inputs(self, sources: Sequence[str], seed: int, classes: Tensor | None = None) -> PromptsFn:
        numbers = None if classes is None else classes.tolist()
        prompts = self.generator.prompts.texts(sources, numbers) or []
        return lambda first, last: prompts[first:last]

    @property
    def tokenizer(self) -> Any:
        return self.generator.prompt_tokenizer

    @property
    def limit(self) -> tuple[int, int]:
        return self.generator.max_prompt, self.generator.max_prompt

    def metadata(self) -> dict[str, Any]:
        return {"max_source_len": self.generator.max_prompt}
